// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func init() { fuzzBufferSize = 1 } // always too small

// A buffer that is too small is replaced by one with room to encrypt the packet.
func TestReadIntoSmallBuffers(t *testing.T) {
	split := virtioNetHdr{
		flags:      unix.VIRTIO_NET_HDR_F_NEEDS_CSUM,
		gsoType:    unix.VIRTIO_NET_HDR_GSO_TCPV4,
		gsoSize:    1000,
		hdrLen:     40,
		csumStart:  20,
		csumOffset: 16,
	}
	for _, hdr := range []virtioNetHdr{split, {}} {
		var read [2][][]byte
		for i, size := range []int{10, 65535} {
			in := tcp4Packet(ip4PortA, ip4PortB, header.TCPFlagAck, 9100, 1)
			rand.New(rand.NewSource(1)).Read(in[virtioNetHdrLen+40:])
			hdr.encode(in)
			bufs, sizes := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize)
			for i := range bufs {
				bufs[i] = make([]byte, size)
			}
			n, err := handleVirtioRead(in, bufs, sizes, offset)
			if err != nil {
				t.Fatal(err)
			}
			for j := range n {
				read[i] = append(read[i], bufs[j][offset:offset+sizes[j]])
				if len(bufs[j]) < offset+sizes[j]+32 {
					t.Errorf("a packet of %d bytes in a buffer of %d", sizes[j], len(bufs[j]))
				}
			}
		}
		if small, large := read[0], read[1]; !bytes.Equal(bytes.Join(small, nil), bytes.Join(large, nil)) || len(small) != len(large) {
			t.Errorf("%d packets in small buffers differ from %d in large ones", len(small), len(large))
		}
	}
}

// Packets that fill their buffers are coalesced too, in whatever order they arrive.
func TestCoalesceFullBuffers(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {1, 2, 0}} {
		var want []byte
		sorted := make([][]byte, len(order))
		for i := range sorted {
			packet := tcp4Packet(ip4PortA, ip4PortB, header.TCPFlagAck, 100, uint32(1+100*i))
			fill(packet[virtioNetHdrLen:], byte(i))
			want = append(want, packet[virtioNetHdrLen+40:]...)
			sorted[i] = packet[:len(packet):len(packet)]
		}
		var bufs [][]byte
		for _, i := range order {
			bufs = append(bufs, sorted[i])
		}
		tables := newTCPGROTable()
		for range 2 { // the second Write of a TUN uses the same tables
			var toWrite []int
			pkts := append([][]byte{}, bufs...)
			if err := handleGRO(pkts, virtioNetHdrLen, tables, newUDPGROTable(), false, &toWrite); err != nil {
				t.Fatal(err)
			}
			if len(toWrite) != 1 {
				t.Fatalf("order %v: %d packets", order, len(toWrite))
			}
			if got := pkts[toWrite[0]][virtioNetHdrLen+40:]; !bytes.Equal(got, want) {
				t.Errorf("order %v: the payload of %d bytes differs", order, len(got))
			}
			tables.reset()
		}
	}
}

// fill sets every byte of a TCP packet's payload, and the checksum.
func fill(packet []byte, value byte) {
	for i := range packet[40:] {
		packet[40+i] = value
	}
	packet[36], packet[37] = 0, 0
	sum := pseudoHeaderChecksumNoFold(unix.IPPROTO_TCP, packet[12:16], packet[16:20], uint16(len(packet)-20))
	binary.BigEndian.PutUint16(packet[36:], ^checksum(packet[20:], sum))
}
