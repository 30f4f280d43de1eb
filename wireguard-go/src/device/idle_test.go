// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"runtime/debug"
	"testing"
	"time"
)

func collects() bool {
	percent := debug.SetGCPercent(100)
	debug.SetGCPercent(percent)
	return percent >= 0
}

func TestSleepsWhenIdle(t *testing.T) {
	pair := genTestPair(t, true)
	pair[0].dev.Down()
	pair[0].dev.SleepWhenIdle()
	defer collect(true)
	pair[0].dev.Up()
	idle := pair[0].dev.idle
	if collects() {
		t.Error("it is not asleep at the beginning")
	}
	for range 2 {
		pair.Send(t, Ping, nil)
		pair.Send(t, Pong, nil)
		if !collects() {
			t.Fatal("traffic does not wake it")
		}
		idle.look()
		if !collects() {
			t.Fatal("it falls asleep despite traffic since the last look")
		}
		idle.look()
		if collects() {
			t.Fatal("it stays awake without traffic")
		}
	}
	// Traffic that comes after the timer has expired.
	idle.wake()
	idle.used.Store(true)
	idle.look()
	if !collects() {
		t.Error("it falls asleep while traffic passes")
	}
}

// A tunnel with persistent keepalives would otherwise never sleep.
func TestKeepalivesDoNotWake(t *testing.T) {
	pair := genTestPair(t, true)
	pair.Send(t, Ping, nil)
	pair[0].dev.Down()
	pair[0].dev.SleepWhenIdle()
	defer collect(true)
	pair[0].dev.Up()
	onlyPeer(pair[0].dev).SendKeepalive()
	deadline := time.Now().Add(5 * time.Second)
	for onlyPeer(pair[0].dev).txBytes.Load() == 0 || onlyPeer(pair[1].dev).rxBytes.Load() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("no keepalive arrives")
		}
		time.Sleep(time.Millisecond)
	}
	if collects() {
		t.Error("a keepalive wakes it")
	}
}
