// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// watchEvents returns the read end of the device's event pipe.
func watchEvents(t *testing.T, device *Device) *os.File {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	fd, err := unix.Dup(int(writer.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	writer.Close()
	if err := device.SetEventStream(fd); err != nil {
		t.Fatal(err)
	}
	reader.SetReadDeadline(time.Now().Add(10 * time.Second))
	return reader
}

func onlyPeer(device *Device) *Peer {
	for _, peer := range device.peers.keyMap {
		return peer
	}
	return nil
}

func expectEvents(t *testing.T, events *bufio.Scanner, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		if !events.Scan() {
			t.Fatalf("no event, expected %q: %v", pattern, events.Err())
		}
		if !regexp.MustCompile("^" + pattern + "$").MatchString(events.Text()) {
			t.Fatalf("event %q, expected %q", events.Text(), pattern)
		}
	}
}

func TestEventsOfAHandshake(t *testing.T) {
	pair := genTestPair(t, true)
	initiator := bufio.NewScanner(watchEvents(t, pair[1].dev))
	responder := bufio.NewScanner(watchEvents(t, pair[0].dev))
	before := time.Now().UnixNano()
	pair.Send(t, Ping, nil)

	timers := fmt.Sprintf("timers %d %d", RejectAfterTime.Milliseconds(), RekeyAttemptTime.Milliseconds())
	peer := onlyPeer(pair[1].dev)
	key := fmt.Sprintf("%x", peer.handshake.remoteStatic[:])
	expectEvents(t, initiator, timers, "initiated "+key, "completed "+key+` initiator \d{19} \d+`)
	var at, age int64
	fmt.Sscanf(strings.SplitN(initiator.Text(), " ", 4)[3], "%d %d", &at, &age)
	if at < before || at > time.Now().UnixNano() || at != peer.lastHandshakeNano.Load() || age > 10000 {
		t.Errorf("completed at %d, %d ms old; begun at %d", at, age, before)
	}
	key = fmt.Sprintf("%x", onlyPeer(pair[0].dev).handshake.remoteStatic[:])
	expectEvents(t, responder, timers, "completed "+key+` responder \d{19} \d+`)
}

func TestForcedHandshake(t *testing.T) {
	pair := genTestPair(t, true)
	initiator := bufio.NewScanner(watchEvents(t, pair[1].dev))
	pair.Send(t, Ping, nil)
	expectEvents(t, initiator, "timers .*", "initiated .*", "completed .*")

	// Both the session and the last initiation are young.
	key := fmt.Sprintf("%x", onlyPeer(pair[1].dev).handshake.remoteStatic[:])
	// In one request: a busy machine could spread many over more than one handshake.
	request := strings.Repeat("public_key="+key+"\ninitiate=true\n", 100)
	if err := pair[1].dev.IpcSet(request); err != nil {
		t.Fatal(err)
	}
	expectEvents(t, initiator, "initiated .*", "completed .*")
	time.Sleep(HandshakeInitationRate * 5)
	onlyPeer(pair[1].dev).emit("end")
	expectEvents(t, initiator, "end .*")
	if err := pair[1].dev.IpcSet("public_key=" + key + "\ninitiate=false\n"); err == nil {
		t.Error("initiate=false is accepted")
	}
}

// The keepalive alone would begin a second handshake.
func TestForcedHandshakeAndKeepalive(t *testing.T) {
	pair := genTestPair(t, true)
	initiator := bufio.NewScanner(watchEvents(t, pair[1].dev))
	key := fmt.Sprintf("%x", onlyPeer(pair[1].dev).handshake.remoteStatic[:])
	pair[1].dev.IpcSet("public_key=" + key + "\npersistent_keepalive_interval=25\ninitiate=true\n")
	expectEvents(t, initiator, "timers .*", "initiated .*", "completed .*")
	onlyPeer(pair[1].dev).emit("end")
	expectEvents(t, initiator, "end .*")
	if got, _ := pair[1].dev.IpcGet(); !regexp.MustCompile(`(?m)^session_age_ms=\d{1,4}$`).MatchString(got) {
		t.Errorf("get reports %q", got)
	}
}

func TestEventsOfTimers(t *testing.T) {
	pair := genTestPair(t, false)
	events := bufio.NewScanner(watchEvents(t, pair[0].dev))
	peer := onlyPeer(pair[0].dev)
	peer.timers.handshakeAttempts.Store(MaxTimerHandshakes + 1)
	expiredRetransmitHandshake(peer)
	expiredZeroKeyMaterial(peer)
	peer.ExpireCurrentKeypairs()
	expectEvents(t, events, "timers .*", "gave-up [0-9a-f]{64}", "expired [0-9a-f]{64}", "expired [0-9a-f]{64}")
}

func TestEventOfRoaming(t *testing.T) {
	pair := genTestPair(t, false)
	events := bufio.NewScanner(watchEvents(t, pair[0].dev))
	peer := onlyPeer(pair[0].dev)
	for _, address := range []string{"192.0.2.1:1", "192.0.2.1:1", "192.0.2.1:2", "[2001:db8::1]:2", "[2001:db8::1]:2"} {
		peer.SetEndpointFromPacket(&conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort(address)})
	}
	peer.emit("end")
	expectEvents(t, events, "timers .*", `endpoint .* 192\.0\.2\.1:1`, `endpoint .* 192\.0\.2\.1:2`,
		`endpoint .* \[2001:db8::1\]:2`, "end .*")
}

func TestNoEventWithoutEndpoint(t *testing.T) {
	pair := genTestPair(t, false)
	events := bufio.NewScanner(watchEvents(t, pair[0].dev))
	peer := onlyPeer(pair[0].dev)
	peer.endpoint.val = nil
	peer.ForceHandshake()
	peer.emit("end")
	expectEvents(t, events, "timers .*", "end .*")
}

// A supervisor that does not read loses events and is told so. The device continues.
func TestEventsDropped(t *testing.T) {
	pair := genTestPair(t, false)
	reader := watchEvents(t, pair[0].dev)
	peer := onlyPeer(pair[0].dev)
	const sent = 10000 // some 70 bytes each, into a pipe of 65536
	for i := 0; i < sent; i++ {
		peer.emit("event", i)
	}
	events := bufio.NewScanner(reader)
	expectEvents(t, events, "timers .*")
	received, marks, again := 0, 0, false
	for events.Scan() && !strings.HasSuffix(events.Text(), " again") {
		switch {
		case events.Text() == "dropped":
			// There may be several: a mark may fit into the pipe where an event does not.
			marks++
			if !again && !pair[0].dev.events.isDropping() {
				again = true
				peer.emit("event", "again")
			}
		case marks > 0 || !strings.HasSuffix(events.Text(), fmt.Sprintf(" %d", received)):
			t.Fatalf("event %q after %d events and %d marks", events.Text(), received, marks)
		default:
			received++
		}
	}
	if events.Err() != nil || marks == 0 || received < 500 || received >= sent {
		t.Fatalf("%d of %d events came, and %d marks: %v", received, sent, marks, events.Err())
	}
}

func (stream *eventStream) isDropping() bool {
	stream.Lock()
	defer stream.Unlock()
	return stream.dropped
}

// The device also continues without a supervisor.
func TestEventsWithoutReader(t *testing.T) {
	pair := genTestPair(t, false)
	watchEvents(t, pair[0].dev).Close()
	onlyPeer(pair[0].dev).emit("event")
	pair.Send(t, Ping, nil)
}

// The answer may arrive before the sender executes its next line of code.
func TestAnsweredInitiationIsNotRepeated(t *testing.T) {
	for range 200 {
		pair := genTestPair(t, true)
		pair.Send(t, Ping, nil)
		if onlyPeer(pair[1].dev).timers.retransmitHandshake.IsPending() {
			t.Fatal("an answered initiation will be sent again")
		}
	}
}
