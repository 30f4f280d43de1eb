// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package tun

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Errors of a packet's form cost nothing but that packet.
func TestReadDropsMalformedPackets(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	tun := &NativeTun{tunFile: os.NewFile(uintptr(fds[0]), "tun"), vnetHdr: true}
	defer tun.Close()
	tcp4 := tcp4Packet(ip4PortA, ip4PortB, header.TCPFlagAck, 250, 1)[offset:]
	tcp6 := tcp6Packet(ip6PortA, ip6PortB, header.TCPFlagAck, 250, 1)[offset:]
	split := virtioNetHdr{flags: 1, gsoType: unix.VIRTIO_NET_HDR_GSO_TCPV4, gsoSize: 100, csumStart: 20, csumOffset: 16}
	with := func(change func(*virtioNetHdr)) virtioNetHdr { hdr := split; change(&hdr); return hdr }
	malformed := map[string][]byte{
		"no header":               {0},
		"no packet":               virtioFrame(split, nil),
		"another version":         virtioFrame(split, append([]byte{0x15}, tcp4[1:]...)),
		"IPv6":                    virtioFrame(split, tcp6),
		"another GSO type":        virtioFrame(with(func(h *virtioNetHdr) { h.gsoType = 3 }), tcp4),
		"GSO type with ECN":       virtioFrame(with(func(h *virtioNetHdr) { h.gsoType |= 0x80 }), tcp4),
		"no segment length":       virtioFrame(with(func(h *virtioNetHdr) { h.gsoSize = 0 }), tcp4),
		"a header cut off":        virtioFrame(split, tcp4[:30]),
		"IP header cut off":       virtioFrame(with(func(h *virtioNetHdr) { h.gsoType, h.csumStart, h.csumOffset = 5, 0, 6 }), tcp4[:9]),
		"TCP header too short":    virtioFrame(split, append(append(bytes.Clone(tcp4[:32]), 0x10), tcp4[33:]...)),
		"csum_start":              virtioFrame(with(func(h *virtioNetHdr) { h.csumStart = 65530 }), tcp4),
		"csum_start in IP header": virtioFrame(with(func(h *virtioNetHdr) { h.csumStart = 4 }), tcp4),
		"csum_offset":             virtioFrame(with(func(h *virtioNetHdr) { h.csumOffset = 240 }), tcp4),
		"csum_offset wraps":       virtioFrame(with(func(h *virtioNetHdr) { h.csumOffset = 65520 }), tcp4),
		"unsplit: csum_start":     virtioFrame(with(func(h *virtioNetHdr) { h.gsoType, h.csumStart = 0, 65530 }), tcp4),
		"unsplit: csum_offset":    virtioFrame(with(func(h *virtioNetHdr) { h.gsoType, h.csumOffset = 0, 30000 }), tcp4),
	}
	bufs, sizes := makeBuffers()
	read := func() (n int) {
		n, err := tun.Read(bufs, sizes, offset)
		if err != nil {
			t.Fatalf("the TUN ends: %v", err)
		}
		return n
	}
	for name, frame := range malformed {
		t.Run(name, func(t *testing.T) {
			unix.Write(fds[1], frame)
			unix.Write(fds[1], virtioFrame(split, tcp4))
			if n := read(); n != 0 {
				t.Errorf("%d packets of a malformed one, the first of %d bytes", n, sizes[0])
			}
			if n := read(); n != 3 {
				t.Errorf("then %d packets, want 3", n)
			}
		})
	}
	unix.Close(fds[1])
	if _, err := tun.Read(bufs, sizes, offset); err == nil {
		t.Error("no error at the end of the descriptor")
	}
}

// A large csum_offset once led out of the buffer that a segment is copied to.
func TestChecksumOffsetBeyondSegment(t *testing.T) {
	packet := make([]byte, 60000)
	packet[0] = 0x45
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	packet[9] = unix.IPPROTO_UDP
	hdr := virtioNetHdr{flags: 1, gsoType: unix.VIRTIO_NET_HDR_GSO_UDP_L4, gsoSize: 1000, csumStart: 20, csumOffset: 50000}
	bufs, sizes := makeBuffers()
	if n, err := handleVirtioRead(virtioFrame(hdr, packet), bufs, sizes, offset); err == nil {
		t.Errorf("%d packets", n)
	}
}
