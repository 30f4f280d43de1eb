// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"time"

	"golang.zx2c4.com/wireguard/ipc"
)

// setForce handles UAPI's initiate=true: the supervisor knows that the network has
// changed, or that it has replaced an engine and with it every session.
func (peer *ipcSetPeer) setForce(value string) error {
	if value != "true" {
		return ipcErrorf(ipc.IpcErrorInvalid, "failed to initiate, invalid value: %v", value)
	}
	peer.force = !peer.dummy
	return nil
}

// ForceHandshake begins a handshake now, however young the session is, from whichever
// local address now leads to the peer.
//
// A peer ignores an initiation that follows another one within HandshakeInitationRate,
// and the answer to the earlier one would no longer be valid. So shortly after an
// initiation the forced handshake begins a moment later.
func (peer *Peer) ForceHandshake() {
	if !peer.isRunning.Load() {
		return
	}
	peer.handshake.mutex.Lock()
	wait := 2*HandshakeInitationRate - time.Since(peer.handshake.lastSentHandshake)
	if wait <= 0 {
		peer.handshake.lastSentHandshake = time.Now().Add(-(RekeyTimeout + time.Second))
	}
	peer.handshake.mutex.Unlock()
	if wait > 0 {
		if !peer.forceLater.Swap(true) {
			time.AfterFunc(wait, func() {
				peer.forceLater.Store(false)
				peer.ForceHandshake()
			})
		}
		return
	}
	peer.markEndpointSrcForClearing()
	peer.SendHandshakeInitiation(false)
}

func (peer *Peer) hasEndpoint() bool {
	peer.endpoint.Lock()
	defer peer.endpoint.Unlock()
	return peer.endpoint.val != nil
}
