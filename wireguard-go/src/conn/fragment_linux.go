// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Send without DF, as the kernel's WireGuard does, so that a router with a smaller MTU
// fragments a packet rather than dropping it: where its ICMP messages are filtered,
// nobody would ever know. IPv6 has no such choice. If it fails, DF stays set.
func init() {
	controlFns = append(controlFns, func(network, address string, c syscall.RawConn) error {
		if network != "udp4" {
			return nil
		}
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		})
	})
}
