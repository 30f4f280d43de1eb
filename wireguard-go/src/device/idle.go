// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	_ "unsafe" // for go:linkname
)

const (
	idleTime  = 20 * time.Second
	idleLimit = 64 << 20 // bytes, at which an idle device collects nevertheless; it uses half of that
)

// forcegcperiod belongs to Go's runtime: the time in ns after which it collects a heap
// that has not grown. Twice in that time the runtime's monitor wakes up a sleeping
// process to check. An idler makes both unnecessary.
//
//go:linkname forcegcperiod runtime.forcegcperiod
var forcegcperiod int64

// An idler turns garbage collection off while no data passes; keepalives and handshakes
// are not data. Otherwise Go would collect every two minutes for nothing, and keep a
// burst's memory until then. The idler first gives that memory back, at most
// 2 * idleTime after the last packet.
type idler struct {
	used   atomic.Bool // since the last look
	mu     sync.Mutex
	asleep bool
	timer  *time.Timer // runs while not asleep
}

// SleepWhenIdle is for a process that does no other work. The device begins asleep.
// Call it before the device has peers.
func (device *Device) SleepWhenIdle() {
	forcegcperiod = math.MaxInt64
	idle := &idler{asleep: true}
	idle.timer = time.AfterFunc(math.MaxInt64, idle.look)
	collect(false)
	device.idle = idle
}

// traffic is called for each batch of packets that has data.
func (device *Device) traffic() {
	if idle := device.idle; idle != nil && !idle.used.Load() {
		idle.wake()
	}
}

func (idle *idler) wake() {
	idle.used.Store(true)
	idle.mu.Lock()
	defer idle.mu.Unlock()
	if idle.asleep {
		idle.asleep = false
		collect(true)
		idle.timer.Reset(idleTime)
	}
}

func (idle *idler) look() {
	if idle.fallAsleep() {
		// Outside the lock, as both take long and traffic must not wait for them.
		runtime.GC()         // a sync.Pool keeps its contents over one collection
		debug.FreeOSMemory() // collects once more
	}
}

func (idle *idler) fallAsleep() bool {
	idle.mu.Lock()
	defer idle.mu.Unlock()
	if idle.used.Swap(false) {
		idle.timer.Reset(idleTime)
		return false
	}
	idle.asleep = true
	collect(false)
	return true
}

func collect(on bool) {
	if on {
		debug.SetMemoryLimit(math.MaxInt64)
		debug.SetGCPercent(100)
	} else {
		debug.SetGCPercent(-1)
		debug.SetMemoryLimit(idleLimit)
	}
}
