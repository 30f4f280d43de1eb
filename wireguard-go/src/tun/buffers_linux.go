// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package tun

const maxCoalescedLen = maxUint16 // of an IP packet

// groHeads are buffers with room for the largest coalesced packet. A Write takes one for
// each packet that it appends others to.
type groHeads struct {
	bufs [][]byte
	used int
}

func (heads *groHeads) take(head []byte, offset int) []byte {
	if heads.used == len(heads.bufs) {
		heads.bufs = append(heads.bufs, make([]byte, offset+maxCoalescedLen))
	}
	heads.used++
	return append(heads.bufs[heads.used-1][:0], head...)
}

// room returns the place in bufs[i] for a packet of size bytes. It replaces a buffer that
// is too small.
func room(bufs [][]byte, i, offset, size int) []byte {
	const trailer = 2 * 16 // padding and tag, so that the packet need not move to be encrypted
	if need := offset + size + trailer; len(bufs[i]) < need {
		bufs[i] = make([]byte, max(need, 2*len(bufs[i])))
	}
	return bufs[i][offset:]
}
