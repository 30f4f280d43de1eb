// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package tun

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// dropMalformed ends a Read of the TUN. An error of a packet's form only costs that packet:
// it returns no packets, and nothing is logged. Whoever has CAP_NET_RAW in the interface's
// namespace can send any packet with any header (packet(7), PACKET_VNET_HDR), without a
// right over the interface.
func dropMalformed(n int, err error) (int, error) {
	if err != nil && !errors.Is(err, ErrTooManySegments) { // that one has packets, and is no end
		return 0, nil
	}
	return n, err
}

// fits returns an error if a field of the header leads out of the packet, or contradicts
// what the packet is. Everything that reads the packet by these fields comes after it.
// Older kernels pass on fields that newer ones refuse.
func (v *virtioNetHdr) fits(packet []byte) error {
	sumEnd := int(v.csumStart) + int(v.csumOffset) + 2
	if v.gsoType == unix.VIRTIO_NET_HDR_GSO_NONE {
		if v.flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 && sumEnd > len(packet) {
			return fmt.Errorf("end of checksum (%d) exceeds packet length (%d)", sumEnd, len(packet))
		}
		return nil
	}
	ipLen, transportLen, sumOffset := 20, 20, uint16(16) // the shortest headers: IPv4 and TCP
	if len(packet) > 0 && packet[0]>>4 == 6 {
		ipLen = 40
	}
	if v.gsoType == unix.VIRTIO_NET_HDR_GSO_UDP_L4 {
		transportLen, sumOffset = udphLen, 6
	}
	switch start := int(v.csumStart); {
	case start < ipLen:
		return fmt.Errorf("the checksum begins at %d, in an IP header of %d bytes", start, ipLen)
	case start+transportLen > len(packet):
		return fmt.Errorf("a transport header at %d exceeds packet length (%d)", start, len(packet))
	case v.csumOffset != sumOffset:
		return fmt.Errorf("checksum offset %d does not belong to GSO type %d", v.csumOffset, v.gsoType)
	case v.gsoSize == 0:
		return errors.New("segments have no length")
	}
	return nil
}
