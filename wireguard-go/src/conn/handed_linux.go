// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// HandSockets takes ownership of bound UDP sockets, at most one of each family. Every
// later Open uses them in place of sockets of its own.
//
// Their datagrams leave from the network namespace in which they were made. A supervisor
// keeps copies of them, so that their port outlives this process.
func (s *StdNetBind) HandSockets(fds []int) error {
	handed := make(map[string]int)
	for _, fd := range fds {
		family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		network := map[int]string{unix.AF_INET: "udp4", unix.AF_INET6: "udp6"}[family]
		if _, second := handed[network]; network == "" || second {
			return fmt.Errorf("expected one socket of a family, IPv4 or IPv6, got another one of family %d", family)
		}
		handed[network] = fd
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, fd := range s.handed {
		unix.Close(fd)
	}
	s.handed = handed
	return nil
}

// HasHandedSockets reports whether only the supervisor can change the port.
func (s *StdNetBind) HasHandedSockets() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handed != nil
}

// listen is listenNet, or returns a duplicate of a handed socket, with the same options.
func (s *StdNetBind) listen(network string, port int) (*net.UDPConn, int, error) {
	if s.handed == nil {
		return listenNet(network, port)
	}
	handed, ok := s.handed[network]
	if !ok {
		return nil, port, syscall.EAFNOSUPPORT
	}
	fd, err := unix.FcntlInt(uintptr(handed), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(fd), network)
	packets, err := net.FilePacketConn(file) // has a duplicate
	file.Close()
	if err != nil {
		return nil, 0, err
	}
	udp, ok := packets.(*net.UDPConn)
	if !ok {
		packets.Close()
		return nil, 0, errors.New("a handed socket is not UDP's")
	}
	if err := setOptions(network, udp); err != nil {
		udp.Close()
		return nil, 0, err
	}
	return udp, udp.LocalAddr().(*net.UDPAddr).Port, nil
}

func setOptions(network string, udp *net.UDPConn) error {
	raw, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	for _, control := range controlFns {
		// EINVAL: IPV6_V6ONLY, the last of its function, is set before a socket is bound.
		if err := control(network, "", raw); err != nil && !errors.Is(err, syscall.EINVAL) {
			return err
		}
	}
	return nil
}
