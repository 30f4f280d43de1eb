// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package conn

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// A peer with a larger MTU sends packets that do not fit into the caller's buffers.
func TestReceiveIntoSmallBuffers(t *testing.T) {
	bind := NewStdNetBind()
	fns, port, err := bind.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer bind.Close()
	peer, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()

	bufs := make([][]byte, IdealBatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 100)
	}
	sizes, eps := make([]int, IdealBatchSize), make([]Endpoint, IdealBatchSize)
	for _, size := range []int{1, 100, 101, 9000, 65507, 1} {
		sent := make([]byte, size)
		rand.Read(sent)
		if _, err := peer.Write(sent); err != nil {
			t.Fatal(err)
		}
		n, err := fns[0](bufs, sizes, eps)
		if err != nil || n != 1 || !bytes.Equal(bufs[0][:sizes[0]], sent) {
			t.Errorf("sent %d bytes, got %d packets, the first of %d (%v)", size, n, sizes[0], err)
		}
		if eps[0].DstToString() != peer.LocalAddr().String() {
			t.Errorf("from %s, not %s", eps[0].DstToString(), peer.LocalAddr())
		}
	}
}

// Trains of datagrams from two senders arrive complete and in order.
func TestTrainsArriveWhole(t *testing.T) {
	from, to := NewStdNetBind(), NewStdNetBind()
	other := NewStdNetBind()
	for _, bind := range []Bind{from, other} {
		if _, _, err := bind.Open(0); err != nil {
			t.Fatal(err)
		}
		defer bind.Close()
	}
	fns, port, err := to.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	endpoint, _ := from.ParseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))

	var sent [][]byte
	for range 10 {
		packet := make([]byte, 1452)
		rand.Read(packet)
		sent = append(sent, packet)
	}
	sent = append(sent, []byte("a shorter one")) // ends a train
	for _, bind := range []Bind{from, other} {
		if err := bind.Send(sent, endpoint); err != nil {
			t.Fatal(err)
		}
	}

	bufs := make([][]byte, IdealBatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	sizes, eps := make([]int, IdealBatchSize), make([]Endpoint, IdealBatchSize)
	received := map[string][][]byte{}
	for got := 0; got < 2*len(sent); {
		n, err := fns[0](bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			sender := eps[i].DstToString()
			received[sender] = append(received[sender], bytes.Clone(bufs[i][:sizes[i]]))
		}
		got += n
	}
	if len(received) != 2 {
		t.Errorf("%d senders", len(received))
	}
	for sender, packets := range received {
		for i := range packets {
			if len(packets) != len(sent) || !bytes.Equal(packets[i], sent[i]) {
				t.Fatalf("from %s: %d packets, and number %d differs", sender, len(packets), i)
			}
		}
	}
}

// Trains longer than any from a network lose their ends, and nothing else.
func TestTrainsTooLong(t *testing.T) {
	bind := NewStdNetBind()
	fns, port, err := bind.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer bind.Close()
	peer, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	raw, _ := peer.SyscallConn()
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 10) })
	if err != nil {
		t.Skip(err)
	}
	for range maxTrains {
		if _, err := peer.Write(make([]byte, 128*10)); err != nil {
			t.Skip("this kernel makes no train of 128: ", err)
		}
	}
	bufs := make([][]byte, IdealBatchSize)
	sizes, eps := make([]int, IdealBatchSize), make([]Endpoint, IdealBatchSize)
	if n, err := fns[0](bufs, sizes, eps); err != nil || n != IdealBatchSize {
		t.Errorf("%d packets, %v", n, err)
	}
}

// FuzzReceive receives any batch of datagrams into small buffers. Each must come out, with
// the address of its sender.
func FuzzReceive(f *testing.F) {
	seedBatches(f)
	bind := NewStdNetBind().(*StdNetBind)
	trains := makeTrains()
	sizes, eps := make([]int, IdealBatchSize), make([]Endpoint, IdealBatchSize)
	f.Fuzz(func(t *testing.T, data, control, data2, control2 []byte) {
		if max(len(data), len(data2)) > maxTrainLen {
			return
		}
		bufs := make([][]byte, IdealBatchSize)
		read := batch{{data, control}, {data2, control2}}
		n, err := bind.receiveIP(read, nil, trains, bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		var got, first [][]byte
		for i := range n {
			got = append(got, bufs[i][:sizes[i]])
			if eps[i].(*StdNetEndpoint).Port() == 1 {
				first = append(first, got[i])
			}
		}
		compare(t, got, read.datagrams())
		compare(t, first, read[:1].datagrams())
	})
}
