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
// WG_HANDOVER_FD names, its UDP sockets, a listening UAPI socket and a TUN. Each has a
// message of its own, so that the engine can be configured while the TUN is still being
// made. One byte goes back when the TUN is in use. From then on each message brings other
// UDP sockets, for another port or another network namespace, and one byte goes back when
// they are in use. Events go to the pipe that WG_EVENT_FD names.
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
	for _, lack := range append(lacks, denySystemCalls()...) {
		device.ReportLack(lack)
	}

	handover, err := strconv.Atoi(os.Getenv(ENV_WG_HANDOVER_FD))
	if err != nil {
		fail("find the handover socket", err)
	}
	// receive ends the process when nobody can send more.
	receive := func(what string, most int) []int {
		fds, err := receiveFDs(handover, most)
		if err == io.EOF {
			os.Exit(ExitSetupSuccess)
		} else if err != nil {
			fail("take over "+what, err)
		}
		return fds
	}
	if err := device.UseSockets(receive("the UDP sockets", 2)); err != nil {
		fail("use the UDP sockets", err)
	}
	uapi, err := listenerOf(receive("the UAPI socket", 1)[0])
	if err != nil {
		fail("listen on the UAPI socket", err)
	}
	ended := make(chan error, 2)
	go func() { ended <- serve(uapi, device) }()

	if err := tdev.attach(receive("the TUN", 1)[0]); err != nil {
		fail("use the TUN", err)
	}
	unix.Write(handover, []byte{0})
	go func() { ended <- useOtherSockets(handover, device) }()

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

// useOtherSockets answers each message that brings UDP sockets, until none can come any more.
func useOtherSockets(handover int, device *device.Device) error {
	for {
		fds, err := receiveFDs(handover, 2)
		if err == nil {
			err = device.UseSockets(fds)
		}
		if err != nil {
			return err
		}
		unix.Write(handover, []byte{0})
	}
}

// receiveFDs waits for a message with at least one descriptor, and at most so many. It
// returns io.EOF if no more will come.
func receiveFDs(socket, most int) ([]int, error) {
	oob := make([]byte, unix.CmsgSpace((most+1)*4)) // room to notice one too many
	n, oobn, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("expected one control message, got %d", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if len(fds) < 1 || len(fds) > most {
		return nil, fmt.Errorf("expected up to %d descriptors, got %d", most, len(fds))
	}
	return fds, nil
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
