// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import (
	"fmt"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Anybody can send an empty datagram. It must not cost what arrives after it.
func TestEmptyDatagramsCostNothing(t *testing.T) {
	bind := NewStdNetBind()
	fns, port, err := bind.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer bind.Close()
	for i, host := range []string{"127.0.0.1", "::1"}[:len(fns)] {
		peer, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err != nil {
			t.Skip(err)
		}
		defer peer.Close()
		want := []string{"one", "two", "three", "the last one"}
		for _, datagram := range []string{"", "one", "", "", "two", "", "three", "the last one"} {
			if _, err := peer.Write([]byte(datagram)); err != nil {
				t.Fatal(err)
			}
		}
		bufs := make([][]byte, IdealBatchSize)
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		sizes, eps := make([]int, IdealBatchSize), make([]Endpoint, IdealBatchSize)
		var got []string
		for !slices.Contains(got, "the last one") {
			n, err := fns[i](bufs, sizes, eps)
			if err != nil {
				t.Fatal(err)
			}
			for j := range n {
				got = append(got, string(bufs[j][:sizes[j]]))
				if eps[j].DstToString() != peer.LocalAddr().String() {
					t.Errorf("%s: %q is from %s", host, got[len(got)-1], eps[j].DstToString())
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", host, got, want)
		}
	}
}

// Control data that cannot be read, or that promises more than came, is an error of one message.
func TestWrongControlData(t *testing.T) {
	cut := gsoControl(unix.SOL_UDP, unix.UDP_GRO, 3)
	cut[0] = 200
	longer := gsoControl(unix.SOL_UDP, unix.UDP_GRO, 9)
	for _, wrong := range []readMessage{{[]byte("abcdef"), cut}, {[]byte("abcdef"), longer}} {
		msgs := newMessages()
		read := batch{wrong, {[]byte("whole"), nil}}
		read.ReadBatch(msgs[IdealBatchSize:], 0)
		n, err := splitCoalescedMessages(msgs, IdealBatchSize, getGSOSize)
		if err != nil {
			t.Error(err)
		}
		var got [][]byte
		for i := range n {
			got = append(got, msgs[i].Buffers[0][:msgs[i].N])
		}
		compare(t, got, read.datagrams())
	}
}
