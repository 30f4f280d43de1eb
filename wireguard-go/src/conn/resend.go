// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/ipv6"
)

// With UDP_SEGMENT the kernel refuses a whole train of datagrams if one of them is larger
// than the MTU of the route, and sends nothing of it. One by one it fragments them.

const (
	// sizeLimitTime is for how long trains that the kernel refused are not tried again.
	// A refusal costs one system call.
	sizeLimitTime = 10 * time.Second

	// maxSizeLimits bounds the memory for sizeLimits: 1 MB if each peer's path is too small.
	maxSizeLimits = 4096
)

// ErrPathTooSmall is returned by Send if it has sent everything, but in a slow way: some
// datagrams were larger than the MTU of the route, and the kernel had to fragment them.
type ErrPathTooSmall struct {
	Size int // of a datagram's payload, in bytes
}

func (e ErrPathTooSmall) Error() string {
	return fmt.Sprintf("datagrams of %d bytes are larger than the route's MTU", e.Size)
}

// errIsOfSize reports whether err may mean that segments do not fit: EMSGSIZE, before
// Linux 6.14 EINVAL.
func errIsOfSize(err error) bool {
	return errors.Is(err, syscall.EMSGSIZE) || errors.Is(err, syscall.EINVAL)
}

// errIsOfOneMessage reports whether err says nothing about the messages after it: a
// packet filter dropped it, or there was no memory for it.
func errIsOfOneMessage(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

// errIsOfSource reports whether err may mean that the sticky source address or its
// interface is gone or down.
func errIsOfSource(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENODEV) ||
		errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH)
}

// unsent returns those of bufs that are in none of the messages that were sent.
func unsent(bufs [][]byte, sent []ipv6.Message) [][]byte {
	length := 0
	for i := range sent {
		for _, buf := range sent[i].Buffers {
			length += len(buf)
		}
	}
	for length > 0 {
		length -= len(bufs[0])
		bufs = bufs[1:]
	}
	return bufs
}

// sizeLimits remembers for a while what sizes of segments the kernel refused, by
// destination.
type sizeLimits map[netip.Addr]sizeLimit

type sizeLimit struct {
	refused int // this size, and larger ones
	until   time.Time
}

// fit reports whether all of bufs may be segments.
func (limits sizeLimits) fit(to netip.Addr, bufs [][]byte) bool {
	limit, ok := limits[to]
	if !ok {
		return true
	}
	if time.Now().After(limit.until) { // the path may have grown
		delete(limits, to)
		return true
	}
	for _, buf := range bufs {
		if len(buf) >= limit.refused {
			return false
		}
	}
	return true
}

func (limits sizeLimits) add(to netip.Addr, refused int) {
	if len(limits) >= maxSizeLimits {
		clear(limits)
	}
	limits[to] = sizeLimit{refused, time.Now().Add(sizeLimitTime)}
}
