// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import "golang.org/x/net/ipv6"

// A train is what the kernel coalesced of one sender's datagrams.
const (
	maxTrains   = IdealBatchSize / udpSegmentMaxDatagrams
	maxTrainLen = 1<<16 - 1
)

func makeTrains() [][]byte {
	trains := make([][]byte, maxTrains)
	for i := range trains {
		trains[i] = make([]byte, maxTrainLen)
	}
	return trains
}

// provideTrains prepares as many messages to be read into.
func provideTrains(trains [][]byte, msgs []ipv6.Message) {
	for i := range trains {
		msgs[i].Buffers[0] = trains[i]
		msgs[i].OOB = msgs[i].OOB[:cap(msgs[i].OOB)]
	}
}

// makeRoom replaces a buffer that is too small.
func makeRoom(buf *[]byte, size int) {
	if len(*buf) < size {
		*buf = make([]byte, max(size, 2*len(*buf)))
	}
}
