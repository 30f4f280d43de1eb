// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import (
	"bytes"
	"net"
	"testing"
	"unsafe"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// ./build.py --fuzz runs these for longer than their seeds.

// A readMessage is what recvmsg(2) returns.
type readMessage struct{ data, control []byte }

// batch is what one recvmmsg(2) returns.
type batch []readMessage

func (read batch) ReadBatch(msgs []ipv6.Message, _ int) (int, error) {
	n := min(len(read), len(msgs))
	for i := range n {
		msgs[i].N = copy(msgs[i].Buffers[0], read[i].data)
		msgs[i].NN = copy(msgs[i].OOB, read[i].control)
		msgs[i].Addr = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: i + 1}
	}
	return n, nil
}

// datagrams are those of the batch, in order.
func (read batch) datagrams() (all [][]byte) {
	for _, message := range read {
		control := message.control[:min(len(message.control), stickyControlSize+gsoControlSize)]
		size, err := getGSOSize(control)
		if err != nil {
			continue
		}
		for rest := message.data; len(rest) > 0; {
			n := len(rest)
			if size > 0 {
				n = min(size, n)
			}
			all, rest = append(all, rest[:n]), rest[n:]
		}
	}
	return all[:min(len(all), IdealBatchSize)]
}

func gsoControl(level, kind int32, size uint16) []byte {
	control := make([]byte, unix.CmsgSpace(4))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	header.Level, header.Type = level, kind
	header.SetLen(unix.CmsgLen(4))
	*(*uint16)(unsafe.Pointer(&control[unix.CmsgLen(0)])) = size
	return control
}

func seedBatches(f *testing.F) {
	train := func(size uint16) []byte { return gsoControl(unix.SOL_UDP, unix.UDP_GRO, size) }
	cut := train(3)
	cut[0] = 200
	some, none := []byte("eight by"), []byte{}
	f.Add(some, train(3), some, train(8))
	f.Add(some, train(9), none, none)
	f.Add(some, train(0), some, train(65535))
	f.Add(none, none, some, none)
	f.Add(none, train(5), some, train(2))
	f.Add(some, cut, some, train(2))
	f.Add(some, cut[:17], some, append(gsoControl(unix.IPPROTO_IP, unix.IP_PKTINFO, 7), train(1)...))
	f.Add(make([]byte, 300), train(2), some, train(1))
	f.Add(make([]byte, 65535), train(512), make([]byte, 65535), train(1024))
}

// FuzzSplit splits any batch of datagrams, coalesced or not. Each must come out.
func FuzzSplit(f *testing.F) {
	seedBatches(f)
	msgs := newMessages()
	f.Fuzz(func(t *testing.T, data, control, data2, control2 []byte) {
		if max(len(data), len(data2)) > 65535 {
			return
		}
		for i := range msgs {
			msgs[i].N, msgs[i].NN = 0, 0
		}
		read := batch{{data, control}, {data2, control2}}
		read.ReadBatch(msgs[IdealBatchSize:], 0)
		n, _ := splitCoalescedMessages(msgs, IdealBatchSize, getGSOSize)
		var got [][]byte
		for i := range min(n, IdealBatchSize) {
			got = append(got, msgs[i].Buffers[0][:msgs[i].N])
		}
		compare(t, got, read.datagrams())
	})
}

// newMessages are those to split into, and two to read into.
func newMessages() []ipv6.Message {
	msgs := make([]ipv6.Message, IdealBatchSize+2)
	for i := range msgs {
		msgs[i].Buffers = [][]byte{make([]byte, 65535)}
		msgs[i].OOB = make([]byte, stickyControlSize+gsoControlSize)
	}
	return msgs
}

func compare(t *testing.T, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d datagrams, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("datagram %d is %x, want %x", i, got[i], want[i])
		}
	}
}
