// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

const foreignName = "wgforeign0"

// TestMain is also main of a process inside another network namespace, which makes a TUN,
// sends its descriptor over standard input, and keeps it until that socket is shut down.
func TestMain(m *testing.M) {
	if os.Getenv("MAKE_TUN") == "" {
		os.Exit(m.Run())
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	if err == nil {
		ifr, _ := unix.NewIfreq(foreignName)
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err == nil {
		err = unix.Sendmsg(0, []byte{0}, unix.UnixRights(fd), nil, 0)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	unix.Read(0, make([]byte, 1))
}

func makeForeignTUN(t *testing.T) (fd int) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	inside := os.NewFile(uintptr(pair[1]), "inside")
	t.Cleanup(func() { unix.Close(pair[0]) })

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"MAKE_TUN=1"}
	cmd.Stdin = inside
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("cannot make a user and network namespace here: %v", err)
	}
	inside.Close()

	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		cmd.Wait()
		t.Skip("cannot make a TUN in a namespace here (/dev/net/tun?)")
	}
	t.Cleanup(func() { cmd.Wait() })
	t.Cleanup(func() { unix.Shutdown(pair[0], unix.SHUT_RDWR) })
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	return fds[0]
}

func TestReceiveFDs(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	for most := 1; most <= 2; most++ {
		for sent := 0; sent <= 4; sent++ {
			var rights []byte
			if sent > 0 {
				rights = unix.UnixRights(make([]int, sent)...) // standard input, several times
			}
			if err := unix.Sendmsg(pair[0], []byte{0}, rights, nil, 0); err != nil {
				t.Fatal(err)
			}
			fds, err := receiveFDs(pair[1], most)
			if good := 1 <= sent && sent <= most; (err == nil) != good || len(fds) != sent && good {
				t.Errorf("%d descriptors of at most %d: %v, %v", sent, most, fds, err)
			}
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	unix.Close(pair[0])
	if fds, err := receiveFDs(pair[1], 1); err != io.EOF {
		t.Errorf("without a sender: %v, %v", fds, err)
	}
}

func TestForeignTUN(t *testing.T) {
	tdev := newForeignTUN()
	defer tdev.Close()
	if err := tdev.attach(makeForeignTUN(t)); err != nil {
		t.Fatal(err)
	}
	if name, err := tdev.Name(); name != foreignName || err != nil {
		t.Errorf("name is %q (%v)", name, err)
	}
	if _, err := net.InterfaceByName(foreignName); err == nil {
		t.Errorf("%s is not in another namespace", foreignName)
	}
	if mtu, err := tdev.MTU(); mtu != device.DefaultMTU || err != nil {
		t.Errorf("MTU is %d (%v)", mtu, err)
	}
	select {
	case event := <-tdev.Events():
		t.Errorf("event %v from an unmonitored TUN", event)
	case <-time.After(10 * time.Millisecond):
	}
}

func TestPacedLog(t *testing.T) {
	var lines []string
	logf := paced(func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) })
	for i := range 1000 {
		logf("line %d", i)
	}
	if len(lines) != maxLines || lines[maxLines-1] != fmt.Sprintf("line %d", maxLines-1) {
		t.Errorf("%q", lines)
	}
}
