// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"strconv"

	"golang.zx2c4.com/wireguard/ipc"
)

// setMTU handles UAPI's mtu=, for an interface whose MTU cannot be looked up.
// The "get" operation does not report it, as wg(8) reads that.
func (device *Device) setMTU(value string) error {
	mtu, err := strconv.ParseUint(value, 10, 16)
	if err != nil || mtu < 576 {
		return ipcErrorf(ipc.IpcErrorInvalid, "invalid mtu: %v", value)
	}
	device.tun.mtu.Store(int32(min(mtu, MaxContentSize)))
	return nil
}
