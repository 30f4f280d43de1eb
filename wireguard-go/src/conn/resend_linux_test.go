// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const smallMTU = 1400

// inNamespace runs the test again in a network namespace of its own, and returns true there.
// lo is up there, with smallMTU.
func inNamespace(t *testing.T) bool {
	const inside = "WG_TEST_IN_NAMESPACE"
	if os.Getenv(inside) != "" {
		for _, value := range []uint32{unix.SIOCSIFMTU, unix.SIOCSIFFLAGS} {
			request, err := unix.NewIfreq("lo")
			if err != nil {
				t.Fatal(err)
			}
			request.SetUint32(smallMTU)
			if value == unix.SIOCSIFFLAGS {
				request.SetUint16(unix.IFF_UP)
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.IoctlIfreq(fd, uint(value), request); err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
		}
		return true
	}
	again := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	again.Env = append(os.Environ(), inside+"=1")
	again.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	output, err := again.CombinedOutput()
	if _, ran := err.(*exec.ExitError); err != nil && !ran {
		t.Skip(err) // no namespaces here
	}
	if err != nil {
		t.Errorf("%v\n%s", err, output)
	}
	return false
}

func openBind(t *testing.T) (bind *StdNetBind, fns []ReceiveFunc, port uint16) {
	bind = NewStdNetBind().(*StdNetBind)
	fns, port, err := bind.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bind.Close() })
	return bind, fns, port
}

// datagrams returns some of these sizes, each with other bytes. Without buffers.patch a train is
// put together in its first one's capacity.
func datagrams(sizes ...int) [][]byte {
	bufs := make([][]byte, len(sizes))
	for i, size := range sizes {
		bufs[i] = append(make([]byte, 0, maxIPv4PayloadLen), bytes.Repeat([]byte{byte(i + 1)}, size)...)
	}
	return bufs
}

// expect receives as many datagrams as were sent, and compares them.
func expect(t *testing.T, receive ReceiveFunc, want [][]byte) {
	t.Helper()
	got := make(chan [][]byte)
	go func() {
		var all [][]byte
		for len(all) < len(want) {
			bufs := datagrams(slices.Repeat([]int{maxIPv4PayloadLen}, IdealBatchSize)...)
			sizes, eps := make([]int, IdealBatchSize), make([]Endpoint, IdealBatchSize)
			n, err := receive(bufs, sizes, eps)
			if err != nil {
				break
			}
			for i := range n {
				if sizes[i] > 0 {
					all = append(all, bufs[i][:sizes[i]])
				}
			}
		}
		got <- all
	}()
	select {
	case all := <-got:
		if !slices.EqualFunc(all, want, bytes.Equal) {
			t.Errorf("%d datagrams arrived, not those that were sent", len(all))
		}
	case <-time.After(5 * time.Second):
		t.Fatal("not all datagrams arrived")
	}
}

// A batch with datagrams that are larger than the route's MTU arrives, in either family.
func TestSendMoreThanTheRouteCarries(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, sizes := range [][]int{
		{1480, 1480, 1480, 500},            // a train
		{1480},                             // no train
		{100, 100, 1480, 1480, 100, 1300},  // trains of which some fit
		{1300, 1300, 1300, 900, 1480, 200}, // only one datagram does not fit
		slices.Repeat([]int{1480}, IdealBatchSize),
	} {
		for i, host := range []string{"127.0.0.1", "::1"} {
			from, _, _ := openBind(t)
			_, fns, port := openBind(t)
			endpoint := &StdNetEndpoint{AddrPort: netip.AddrPortFrom(netip.MustParseAddr(host), port)}
			for range 3 { // the later ones know
				sent := datagrams(sizes...)
				var tooSmall ErrPathTooSmall
				if err := from.Send(sent, endpoint); err != nil && !errors.As(err, &tooSmall) {
					t.Errorf("%v to %s: %v", sizes, host, err)
				}
				expect(t, fns[i], sent)
			}
		}
	}
}

// The refusal is reported and remembered once, only for what is too large, and not for ever.
func TestRefusedTrainsAreRemembered(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	from, _, _ := openBind(t)
	_, fns, port := openBind(t)
	here := netip.MustParseAddr("127.0.0.1")
	endpoint := &StdNetEndpoint{AddrPort: netip.AddrPortFrom(here, port)}
	send := func(sizes ...int) error {
		sent := datagrams(sizes...)
		err := from.Send(sent, endpoint)
		expect(t, fns[0], sent)
		return err
	}
	if err := send(1300, 1300); err != nil {
		t.Errorf("what fits: %v", err)
	}
	if err := send(1480, 1480); err != error(ErrPathTooSmall{1480}) {
		t.Errorf("a train that does not fit: %v", err)
	}
	if err := send(1480, 1480); err != nil {
		t.Errorf("the next one: %v", err)
	}
	if !from.limits.fit(here, datagrams(1479)) || from.limits.fit(here, datagrams(100, 1480)) {
		t.Error("the refused size is not what decides")
	}
	if !from.limits.fit(netip.MustParseAddr("127.0.0.2"), datagrams(1480)) {
		t.Error("it concerns another destination")
	}
	from.limits[here] = sizeLimit{1480, time.Now().Add(-time.Second)}
	if err := send(1480, 1480); err != error(ErrPathTooSmall{1480}) {
		t.Errorf("not tried again after a while: %v", err)
	}
}

func TestSizeLimitsAreBounded(t *testing.T) {
	limits := make(sizeLimits)
	for i := range 3 * maxSizeLimits {
		limits.add(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1480)
	}
	if len(limits) > maxSizeLimits {
		t.Error(len(limits))
	}
}

// Whoever uses the sticky source address after it is gone loses everything.
func TestSourceAddressThatIsGone(t *testing.T) {
	from, _, _ := openBind(t)
	_, fns, port := openBind(t)
	endpoint := &StdNetEndpoint{AddrPort: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}
	info := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte{192, 0, 2, 77}}) // nobody here has it
	for _, sizes := range [][]int{{100}, {1000, 1000, 1000, 10}} {
		endpoint.src = slices.Clone(info)
		sent := datagrams(sizes...)
		if err := from.Send(sent, endpoint); err != nil {
			t.Error(err)
		}
		expect(t, fns[0], sent)
		if len(from.limits) > 0 {
			t.Error("taken for a path that is too small")
		}
	}
}

// The kernel's answers to messages, by the first byte of each.
type answers map[byte]error

func (a answers) WriteBatch(msgs []ipv6.Message, _ int) (int, error) {
	for i := range msgs {
		if err := a[msgs[i].Buffers[0][0]]; err != nil && i == 0 {
			return 0, fmt.Errorf("sendmmsg: %w", err)
		} else if err != nil {
			return i, nil
		}
	}
	return len(msgs), nil
}

// What a packet filter drops costs no other message of the batch.
func TestErrorsOfOneMessage(t *testing.T) {
	msgs := make([]ipv6.Message, 5)
	for i := range msgs {
		msgs[i].Buffers = net.Buffers{{byte(i)}}
	}
	for _, test := range []struct {
		answers answers
		sent    int
		err     error
	}{
		{answers{}, 5, nil},
		{answers{0: unix.EPERM, 2: unix.ENOBUFS}, 5, unix.ENOBUFS},
		{answers{4: unix.ENOMEM}, 5, unix.ENOMEM},
		{answers{1: unix.EPERM, 3: unix.EMSGSIZE}, 3, unix.EMSGSIZE},
		{answers{2: unix.ENETUNREACH, 4: unix.EPERM}, 2, unix.ENETUNREACH},
	} {
		sent, err := new(StdNetBind).send(nil, test.answers, msgs)
		if sent != test.sent || !errors.Is(err, test.err) {
			t.Errorf("%v: %d sent, %v", test.answers, sent, err)
		}
	}
}

// Before Linux 6.14 the kernel says EINVAL.
func TestErrorsOfSize(t *testing.T) {
	for err, want := range map[error]bool{
		unix.EMSGSIZE: true, unix.EINVAL: true, unix.EIO: false, unix.EPERM: false, net.ErrClosed: false,
	} {
		wrapped := &net.OpError{Op: "write", Err: os.NewSyscallError("sendmmsg", err)}
		if errIsOfSize(wrapped) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}
