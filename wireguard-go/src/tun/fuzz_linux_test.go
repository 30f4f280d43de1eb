// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package tun

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// ./build.py --fuzz runs these for longer than their seeds.

// fuzzBufferSize is the size of the buffers that packets are read into.
var fuzzBufferSize = 1<<16 + 100

func makeBuffers() ([][]byte, []int) {
	bufs, sizes := make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, fuzzBufferSize)
	}
	return bufs, sizes
}

func virtioFrame(hdr virtioNetHdr, packet []byte) []byte {
	frame := append(make([]byte, virtioNetHdrLen), packet...)
	hdr.encode(frame)
	return frame
}

// FuzzVirtioRead reads any packet with any header, as a neighbour may send it. What is read
// must be the packet: as it is, or as segments with valid headers.
func FuzzVirtioRead(f *testing.F) {
	needs := uint8(unix.VIRTIO_NET_HDR_F_NEEDS_CSUM)
	tcp4 := tcp4Packet(ip4PortA, ip4PortB, header.TCPFlagAck|header.TCPFlagPsh, 250, 1)[offset:]
	tcp6 := tcp6Packet(ip6PortA, ip6PortB, header.TCPFlagAck, 250, 1)[offset:]
	udp4 := udp4Packet(ip4PortA, ip4PortB, 250)[offset:]
	udp6 := udp6Packet(ip6PortA, ip6PortB, 250)[offset:]
	for _, sumOffset := range []uint16{0, 6, 16, 3000, 65515, 65535} {
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_NONE), uint16(0), uint16(20), sumOffset, tcp4)
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_TCPV4), uint16(100), uint16(20), sumOffset, tcp4)
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_TCPV6), uint16(100), uint16(40), sumOffset, tcp6)
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_UDP_L4), uint16(100), uint16(20), sumOffset, udp4)
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_UDP_L4), uint16(100), uint16(40), sumOffset, udp6)
	}
	for _, sumStart := range []uint16{0, 8, 30, 300, 65500, 65535} {
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_NONE), uint16(0), sumStart, uint16(6), udp4)
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_TCPV4), uint16(100), sumStart, uint16(16), tcp4)
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_UDP_L4), uint16(100), sumStart, uint16(6), udp6)
		f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_UDP_L4), uint16(100), sumStart, uint16(6), udp6[:9])
	}
	f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_TCPV4), uint16(100), uint16(20), uint16(16), []byte{})
	f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_TCPV4), uint16(0), uint16(20), uint16(16), tcp4)
	f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_TCPV4), uint16(1), uint16(20), uint16(16), tcp4)
	f.Add(needs, uint8(unix.VIRTIO_NET_HDR_GSO_TCPV6), uint16(100), uint16(20), uint16(16), tcp4)
	f.Add(uint8(0), uint8(unix.VIRTIO_NET_HDR_GSO_TCPV4|unix.VIRTIO_NET_HDR_GSO_ECN), uint16(9), uint16(20), uint16(16), tcp4)
	f.Fuzz(func(t *testing.T, flags, gsoType uint8, gsoSize, csumStart, csumOffset uint16, packet []byte) {
		if len(packet) > maxUint16 {
			return
		}
		bufs, sizes := makeBuffers()
		hdr := virtioNetHdr{flags: flags, gsoType: gsoType, gsoSize: gsoSize, csumStart: csumStart, csumOffset: csumOffset}
		n, err := handleVirtioRead(virtioFrame(hdr, packet), bufs, sizes, offset)
		if n < 0 || n > len(bufs) {
			t.Fatalf("%d packets", n)
		}
		if err != nil {
			return
		}
		if gsoType == unix.VIRTIO_NET_HDR_GSO_NONE {
			got, want := bytes.Clone(bufs[0][offset:offset+sizes[0]]), bytes.Clone(packet)
			if flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
				sumAt := int(csumStart) + int(csumOffset)
				clear(got[sumAt : sumAt+2])
				clear(want[sumAt : sumAt+2])
			}
			if !bytes.Equal(got, want) {
				t.Errorf("read %x, want %x", got, want)
			}
			return
		}
		var payload []byte
		isV6, proto := packet[0]>>4 == 6, uint8(unix.IPPROTO_TCP)
		headers := int(csumStart) + udphLen
		if gsoType == unix.VIRTIO_NET_HDR_GSO_UDP_L4 {
			proto = unix.IPPROTO_UDP
		} else {
			headers = int(csumStart) + int(packet[csumStart+12]>>4*4)
		}
		for i := range n {
			segment := bufs[i][offset : offset+sizes[i]]
			if len(segment) < headers || len(segment) > headers+int(gsoSize) {
				t.Fatalf("segment %d has %d bytes", i, len(segment))
			}
			if sum := transportChecksum(segment, int(csumStart), proto, isV6); sum != 0xffff {
				t.Errorf("segment %d has checksum %x", i, sum)
			}
			payload = append(payload, segment[headers:]...)
		}
		if !bytes.Equal(payload, packet[headers:]) {
			t.Errorf("the payloads are %x, want %x", payload, packet[headers:])
		}
	})
}

// transportChecksum sums up the slow and simple way. It is 0xffff if the packet's field is right.
func transportChecksum(packet []byte, at int, proto uint8, isV6 bool) uint16 {
	addresses := packet[ipv4SrcAddrOffset : ipv4SrcAddrOffset+8]
	if isV6 {
		addresses = packet[ipv6SrcAddrOffset : ipv6SrcAddrOffset+32]
	}
	half := len(addresses) / 2
	sum := pseudoHeaderChecksumRefNoFold(proto, addresses[:half], addresses[half:], uint16(len(packet)-at))
	return checksumRef(packet[at:], sum)
}

// FuzzGRO has packets coalesced for the TUN and split as the kernel would. Each packet must
// come back once, whatever was next to it.
func FuzzGRO(f *testing.F) {
	f.Add([]byte{}, true)
	for kind := range byte(4) {
		for _, order := range []string{"012", "210", "102", "0012", "0132"} {
			var script []byte
			for _, place := range []byte(order) {
				script = append(script, kind, place-'0', 100, 0, 0)
			}
			f.Add(script, true)
			f.Add(append(script, kind|1<<2, 3, 100, 50, 0xff), true) // a spoiled one
			f.Add(append(script, kind|1<<3, 3, 90, 0, 0), false)     // a last one
		}
	}
	f.Add([]byte{1 << 3, 3, 48, 0, 0, 0, 2, 100, 0, 0}, false) // the last one with PSH arrives first
	f.Add([]byte{4 << 5, 0, 40, 0x45, 6, 4 << 5, 0, 60, 0x60, 6}, true)
	f.Fuzz(func(t *testing.T, script []byte, udpGSO bool) {
		var pkts [][]byte
		var want []string
		for len(script) >= 5 && len(pkts) < conn.IdealBatchSize {
			packet := packetOf(script)
			script = script[5:]
			pkts = append(pkts, packet)
			want = append(want, canonical(packet[offset:]))
		}
		var toWrite []int
		if err := handleGRO(pkts, offset, newTCPGROTable(), newUDPGROTable(), udpGSO, &toWrite); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range toWrite {
			bufs, sizes := makeBuffers()
			n, err := handleVirtioRead(pkts[i], bufs, sizes, offset)
			if err != nil {
				t.Fatalf("%v: %x", err, pkts[i])
			}
			for j := range n {
				got = append(got, canonical(bufs[j][offset:offset+sizes[j]]))
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%x\nwant %x", got, want)
		}
	})
}

// packetOf makes a packet of five bytes: its kind and flow, its place in the flow, its
// length, and what is spoiled.
func packetOf(script []byte) []byte {
	kind, place, size := script[0]&3, uint32(script[1]), 40*uint32(script[2])
	spoilAt, spoilBy := int(script[3]), script[4]
	src4, src6 := ip4PortA, ip6PortA
	if script[0]&(1<<4) != 0 {
		src4, src6 = ip4PortC, ip6PortC
	}
	flags := header.TCPFlags(header.TCPFlagAck)
	if script[0]&(1<<3) != 0 {
		flags |= header.TCPFlagPsh
	}
	var packet []byte
	switch kind {
	case 0:
		packet = tcp4Packet(src4, ip4PortB, flags, size, 1+place*4000)
	case 1:
		packet = tcp6Packet(src6, ip6PortB, flags, size, 1+place*4000)
	case 2:
		packet = udp4Packet(src4, ip4PortB, int(size))
	case 3:
		packet = udp6Packet(src6, ip6PortB, int(size))
	}
	if script[0]>>5 == 4 { // no packet at all
		packet = packet[:offset+1+int(size)%(len(packet)-offset)]
		packet[offset] = script[3]
		packet[min(offset+9, len(packet)-1)] = script[4]
	} else if script[0]&(1<<2) != 0 {
		packet[offset+spoilAt%(len(packet)-offset)] ^= spoilBy
	}
	return packet
}

// canonical is a packet without the fields that may differ after it was coalesced and split.
func canonical(packet []byte) string {
	packet = bytes.Clone(packet)
	if len(packet) >= 20 && packet[0]>>4 == 4 {
		clear(packet[4:6])   // the ID counts up
		clear(packet[10:12]) // so the sum changes; nobody checks it before
	} else if len(packet) >= 40 && packet[0]>>4 == 6 {
		packet[1] &= 0xf0 // the flow label is that of the first packet
		clear(packet[2:4])
	}
	return string(packet)
}

// FuzzChecksum compares the fast sums with the slow ones.
func FuzzChecksum(f *testing.F) {
	f.Add([]byte("an odd number of bytes!"), []byte{192, 0, 2, 1, 192, 0, 2, 2}, uint8(6), uint16(0x1234))
	f.Add(bytes.Repeat([]byte{0xff}, 1420), bytes.Repeat([]byte{0xff}, 32), uint8(17), uint16(0xffff))
	f.Add([]byte{}, make([]byte, 8), uint8(0), uint16(0))
	f.Fuzz(func(t *testing.T, data, addresses []byte, protocol uint8, length uint16) {
		if got, want := checksum(data, uint64(length)), checksumRef(data, length); got != want {
			t.Errorf("the sum is %x, want %x", got, want)
		}
		if len(addresses) != 8 && len(addresses) != 32 {
			return
		}
		src, dst := addresses[:len(addresses)/2], addresses[len(addresses)/2:]
		sum := pseudoHeaderChecksumNoFold(protocol, src, dst, length)
		want := checksumRef(data, pseudoHeaderChecksumRefNoFold(protocol, src, dst, length))
		if got := checksum(data, sum); got != want {
			t.Errorf("with a pseudo header, the sum is %x, want %x", got, want)
		}
	})
}
