// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/ipc"
)

// UseSockets takes ownership of bound UDP sockets, uses them from now on, and brings the
// device up if it is not. The bind must be upstream's.
func (device *Device) UseSockets(fds []int) error {
	if err := device.net.bind.(*conn.StdNetBind).HandSockets(fds); err != nil {
		return err
	}
	if device.isUp() {
		return device.BindUpdate()
	}
	return device.Up()
}

// refusePort refuses UAPI's listen_port= where the supervisor's sockets have another one.
func (device *Device) refusePort(port uint16) error {
	device.net.RLock()
	defer device.net.RUnlock()
	bind, ok := device.net.bind.(*conn.StdNetBind)
	if ok && bind.HasHandedSockets() && port != device.net.port {
		return ipcErrorf(ipc.IpcErrorInvalid, "the supervisor chooses listen_port: %d", port)
	}
	return nil
}
