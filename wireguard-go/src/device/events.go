// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// An eventStream reports to the supervisor what happens to peers' sessions, as it
// happens, one line an event:
//
//	timers REJECT_AFTER_TIME REKEY_ATTEMPT_TIME    the first line; both in ms
//	initiated PEER                                 a handshake initiation is sent, or sent again
//	completed PEER ROLE UNIX_NS AGE_MS             ROLE is initiator or responder, AGE_MS the session's age
//	gave-up PEER                                   no answer came, and there will be no further attempt
//	expired PEER                                   the peer's session keys are gone or no longer used
//	endpoint PEER ADDRESS:PORT                     the peer now sends from this address
//	too-large PEER SIZE                            datagrams of SIZE bytes to the peer have to be fragmented
//	dropped                                        events were lost: ask UAPI
//	lacks PART: REASON                             this part of the sandbox is not available
//
// PEER is a public key in hexadecimal, as in UAPI.
//
// The engine never waits for the supervisor. An event that finds the pipe full is
// dropped, and so is every later one until there is room for "dropped".
type eventStream struct {
	sync.Mutex
	file    *os.File
	raw     syscall.RawConn
	fd      int
	dropped bool
}

// SetEventStream sends events to the write end of a pipe, and takes ownership of it.
// Call it before the device has peers.
func (device *Device) SetEventStream(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "events") // non-blocking, so the runtime polls it
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	device.events = &eventStream{file: file, raw: raw, fd: fd}
	device.events.write(fmt.Sprintf("timers %d %d\n", RejectAfterTime.Milliseconds(), RekeyAttemptTime.Milliseconds()))
	return nil
}

// ReportLack reports a part of the sandbox that is not available, and why.
func (device *Device) ReportLack(lack error) {
	device.events.write(fmt.Sprintf("lacks %v\n", lack))
}

// emitInitiated is for a handshake initiation that is about to be sent. If sending
// it fails, the next attempt may succeed, so the event is right either way.
func (peer *Peer) emitInitiated() {
	if peer.hasEndpoint() {
		peer.emit("initiated")
	}
}

// emitCompleted is for a handshake that completed now.
func (peer *Peer) emitCompleted(now time.Time) {
	if session := peer.keypairs.Current(); session != nil {
		role := "responder"
		if session.isInitiator {
			role = "initiator"
		}
		peer.emit("completed", role, now.UnixNano(), now.Sub(session.created).Milliseconds())
	}
}

// emitMove is for an endpoint that is about to be stored, which may be the same as
// before. The caller holds the lock of peer.endpoint.
func (peer *Peer) emitMove(endpoint conn.Endpoint) {
	if !sameDestination(peer.endpoint.val, endpoint) {
		peer.emit("endpoint", endpoint.DstToString())
	}
}

// emitTooLarge takes Send's error, and returns it unless everything was sent.
func (peer *Peer) emitTooLarge(err error) error {
	var tooSmall conn.ErrPathTooSmall
	if !errors.As(err, &tooSmall) {
		return err
	}
	peer.emit("too-large", tooSmall.Size)
	return nil
}

// emit sends an event about this peer.
func (peer *Peer) emit(event string, args ...any) {
	if stream := peer.device.events; stream != nil {
		line := fmt.Sprintf("%s %x", event, peer.handshake.remoteStatic[:])
		stream.write(line + fmt.Sprintln(append([]any{""}, args...)...))
	}
}

// write sends a line. It is shorter than PIPE_BUF, so the pipe takes all of it or nothing.
func (stream *eventStream) write(line string) {
	stream.Lock()
	defer stream.Unlock()
	if stream.dropped {
		return
	}
	if _, err := unix.Write(stream.fd, []byte(line)); err == unix.EAGAIN {
		stream.dropped = true
		go stream.markDropped()
	}
}

// markDropped waits until "dropped" is in the pipe.
func (stream *eventStream) markDropped() {
	stream.raw.Write(func(fd uintptr) bool {
		stream.Lock()
		defer stream.Unlock()
		if _, err := unix.Write(int(fd), []byte("dropped\n")); err == unix.EAGAIN {
			return false // the runtime waits for room, then calls again
		}
		stream.dropped = false
		return true
	})
}

func sameDestination(a, b conn.Endpoint) bool {
	if a == nil || b == nil {
		return a == b
	}
	native, ok := a.(*conn.StdNetEndpoint)
	other, also := b.(*conn.StdNetEndpoint)
	if ok && also { // without allocations: this runs for every batch of packets
		return native.AddrPort == other.AddrPort
	}
	return a.DstToString() == b.DstToString()
}
