// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

const (
	ENV_WG_HANDOVER_FD = "WG_HANDOVER_FD"
	ENV_WG_EVENT_FD    = "WG_EVENT_FD"
)

// runSupervised is main for a process that a supervisor starts ahead of its work.
//
// It first does everything that takes time. Then it receives, over the socket that
// WG_HANDOVER_FD names, a listening UAPI socket and a TUN. Each has a message of its own,
// so that the engine can be configured while the TUN is still being made. One byte goes
// back when the TUN is in use. Events go to the pipe that WG_EVENT_FD names.
//
// The process ends once nobody holds the other end of that socket. The daemon holds it,
// and so does systemd while the daemon is away: no engine outlives both.
func runSupervised() {
	logger := device.NewLogger(device.LogLevelError, "")
	logger.Errorf = paced(logger.Errorf)
	fail := func(operation string, err error) {
		logger.Errorf("Failed to %s: %v", operation, err)
		os.Exit(ExitSetupFailed)
	}

	neverWaitForLog()
	lacks := denyFiles()
	tdev := newForeignTUN()
	device := device.NewDevice(tdev, conn.NewDefaultBind(), logger)
	if events, err := strconv.Atoi(os.Getenv(ENV_WG_EVENT_FD)); err != nil {
		fail("find the event pipe", err)
	} else if err := device.SetEventStream(events); err != nil {
		fail("use the event pipe", err)
	}
	device.SleepWhenIdle()
	if err := device.Up(); err != nil {
		fail("bring up device", err)
	}
	for _, lack := range append(lacks, denySystemCalls()...) {
		device.ReportLack(lack)
	}

	handover, err := strconv.Atoi(os.Getenv(ENV_WG_HANDOVER_FD))
	if err != nil {
		fail("find the handover socket", err)
	}
	fd, err := receiveFD(handover)
	if err == io.EOF {
		return
	} else if err != nil {
		fail("take over the UAPI socket", err)
	}
	uapi, err := listenerOf(fd)
	if err != nil {
		fail("listen on the UAPI socket", err)
	}
	ended := make(chan error, 2)
	go func() { ended <- serve(uapi, device) }()

	fd, err = receiveFD(handover)
	if err == io.EOF {
		return
	} else if err != nil {
		fail("take over the TUN", err)
	}
	if err := tdev.attach(fd); err != nil {
		fail("use the TUN", err)
	}
	unix.Write(handover, []byte{0})
	go func() {
		unix.Read(handover, make([]byte, 1))
		ended <- io.EOF
	}()

	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM, os.Interrupt)
	select {
	case <-term:
	case <-ended:
	case <-device.Wait():
	}
	uapi.Close()
	device.Close()
}

// neverWaitForLog makes log writes non-blocking: lines that nobody reads are dropped.
// The reader of the log's pipe may be away for a while, or gone.
func neverWaitForLog() {
	signal.Ignore(unix.SIGPIPE) // Go's runtime ends a process on EPIPE from these descriptors
	for _, fd := range []int{1, 2} {
		unix.SetNonblock(fd, true) // the runtime believes that they block, so EAGAIN is final
	}
}

// paced lets maxLines pass within logWindow. A neighbour can cause an error with each packet,
// for example if the interface's MTU is larger than a datagram, and a line costs its reader
// more than us.
func paced(logf func(string, ...any)) func(string, ...any) {
	var mu sync.Mutex
	var lines int
	var end time.Time
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); !now.Before(end) {
			if lines > maxLines {
				logf("%d more lines were left out", lines-maxLines)
			}
			lines, end = 0, now.Add(logWindow)
		}
		if lines++; lines <= maxLines {
			logf(format, args...)
		}
	}
}

const (
	maxLines  = 20
	logWindow = 10 * time.Second
)

// receiveFD waits for a message with one descriptor. It returns io.EOF if no more will come.
func receiveFD(socket int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(2*4)) // room to notice a second descriptor
	n, oobn, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if n == 0 {
		return -1, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return -1, err
	}
	if len(messages) != 1 {
		return -1, fmt.Errorf("expected one control message, got %d", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		return -1, fmt.Errorf("expected one descriptor, got %d", len(fds))
	}
	return fds[0], nil
}

// listenerOf takes ownership of a listening socket. The supervisor bound it, to any path,
// which may be unlinked by now. Upstream would watch /var/run/wireguard/INTERFACE.sock and
// remove it at the end; we do neither.
func listenerOf(fd int) (net.Listener, error) {
	file := os.NewFile(uintptr(fd), "uapi")
	defer file.Close() // the listener has a duplicate
	return net.FileListener(file)
}

// serve answers UAPI's clients until the listener fails.
func serve(uapi net.Listener, device *device.Device) error {
	for {
		conn, err := uapi.Accept()
		if err != nil {
			return err
		}
		go device.IpcHandle(conn)
	}
}
