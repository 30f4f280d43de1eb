// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package main

import (
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// A foreignTUN is a TUN whose interface is in another network namespace, and which may
// arrive after everything else is set up.
//
// An interface is looked up by name in our own namespace, where that name may be free
// or another interface's. So nothing is looked up: the supervisor made the interface
// and sends its MTU (UAPI's mtu=), and the interface counts as up from the start.
type foreignTUN struct {
	tun.Device // once attached
	attached   chan struct{}
	events     chan tun.Event
	closeOnce  sync.Once
}

func newForeignTUN() *foreignTUN {
	return &foreignTUN{attached: make(chan struct{}), events: make(chan tun.Event)}
}

func (t *foreignTUN) attach(fd int) (err error) {
	// Unmonitored: without a netlink socket and a periodic probe of the interface.
	t.Device, _, err = tun.CreateUnmonitoredTUNFromFD(fd)
	if err == nil {
		close(t.attached)
	}
	return err
}

func (t *foreignTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	<-t.attached
	return t.Device.Read(bufs, sizes, offset)
}

func (t *foreignTUN) Write(bufs [][]byte, offset int) (int, error) {
	<-t.attached
	return t.Device.Write(bufs, offset)
}

func (t *foreignTUN) MTU() (int, error) { return device.DefaultMTU, nil }

func (t *foreignTUN) BatchSize() int { return conn.IdealBatchSize }

func (t *foreignTUN) Events() <-chan tun.Event { return t.events }

func (t *foreignTUN) Close() (err error) {
	t.closeOnce.Do(func() {
		close(t.events)
		if t.Device != nil {
			err = t.Device.Close()
		}
	})
	return err
}
