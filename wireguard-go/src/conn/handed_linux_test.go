// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func boundSocket(t *testing.T, family, kind int) (fd, port int) {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var any unix.Sockaddr = &unix.SockaddrInet4{}
	if family == unix.AF_INET6 {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		any = &unix.SockaddrInet6{}
	}
	if err := unix.Bind(fd, any); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		port = name.Port
	case *unix.SockaddrInet6:
		port = name.Port
	}
	return fd, port
}

// A bind that is closed and opened again goes on with the same sockets, and a copy of one
// outlives it.
func TestHandedSockets(t *testing.T) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, port := boundSocket(t, family, unix.SOCK_DGRAM)
		bind := NewStdNetBind().(*StdNetBind)
		if err := bind.HandSockets([]int{fd}); err != nil {
			t.Fatal(err)
		}
		if !bind.HasHandedSockets() {
			t.Error("the port could be changed")
		}
		for round := 0; round < 2; round++ {
			receive, got, err := bind.Open(0)
			if err != nil || int(got) != port || len(receive) != 1 {
				t.Fatalf("family %d: port %d of %d, %d receivers: %v", family, got, port, len(receive), err)
			}
			sendAndReceive(t, bind, receive[0], family, port)
			for _, option := range []struct{ level, name int }{
				{unix.IPPROTO_UDP, unix.UDP_GRO},
				map[int]struct{ level, name int }{
					unix.AF_INET:  {unix.IPPROTO_IP, unix.IP_PKTINFO},
					unix.AF_INET6: {unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO},
				}[family],
			} {
				if value, err := unix.GetsockoptInt(fd, option.level, option.name); err != nil || value != 1 {
					t.Errorf("family %d: option %v is %d: %v", family, option, value, err)
				}
			}
			bind.Close()
		}
		bind.HandSockets(nil)
		if err := unix.Close(fd); err != unix.EBADF {
			t.Errorf("the socket is still open: %v", err)
		}
	}
}

func sendAndReceive(t *testing.T, bind *StdNetBind, receive ReceiveFunc, family, port int) {
	t.Helper()
	loopback := map[int]string{unix.AF_INET: "127.0.0.1", unix.AF_INET6: "::1"}[family]
	itself := netip.AddrPortFrom(netip.MustParseAddr(loopback), uint16(port))
	if err := bind.Send([][]byte{[]byte("hello")}, &StdNetEndpoint{AddrPort: itself}); err != nil {
		t.Fatal(err)
	}
	batch := bind.BatchSize()
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, 65535) // with UDP_GRO, upstream reads several datagrams into one
	}
	n, err := receive(bufs, sizes, make([]Endpoint, batch))
	if err != nil || n != 1 || !bytes.Equal(bufs[0][:sizes[0]], []byte("hello")) {
		t.Fatalf("received %d: %v", n, err)
	}
}

func TestHandedSocketsOfTheWrongKind(t *testing.T) {
	first, _ := boundSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
	second, _ := boundSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
	tcp, _ := boundSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	null, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fds := range [][]int{{first, second}, {null}} {
		if err := NewStdNetBind().(*StdNetBind).HandSockets(fds); err == nil {
			t.Errorf("%v were taken", fds)
		}
	}
	bind := NewStdNetBind().(*StdNetBind)
	if err := bind.HandSockets([]int{tcp}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := bind.Open(0); err == nil {
		t.Error("a TCP socket was opened")
	}
}
