// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

const maxFuzzed = 2000 // so that a message fits into a buffer: the channels do not make larger ones

// hostilePair is a pair of devices with a session, of which the second may send anything.
func hostilePair(tb testing.TB) (pair testPair) {
	configs, endpoints := genConfigs(tb)
	binds := bindtest.NewChannelBinds()
	for i := range pair {
		tun := tuntest.NewChannelTUN()
		dev := NewDevice(tun.TUN(), binds[i], NewLogger(LogLevelSilent, ""))
		tb.Cleanup(dev.Close)
		pair[i] = testPeer{tun, dev, netip.AddrFrom4([4]byte{1, 0, 0, byte(i + 1)})}
		if err := dev.IpcSet(configs[i] + "allowed_ip=::/0\n"); err != nil {
			tb.Fatal(err)
		}
		if err := dev.Up(); err != nil {
			tb.Fatal(err)
		}
	}
	for i := range pair {
		pair[i].dev.IpcSet(fmt.Sprintf(endpoints[i], pair[i^1].dev.net.port))
	}
	pair.Send(tb, Ping, nil)
	return pair
}

// sendInside sends any content as a transport message of the second device's session.
func (pair *testPair) sendInside(tb testing.TB, content []byte) {
	peer := onlyPeer(pair[1].dev)
	keypair := peer.keypairs.Current()
	message, nonce := make([]byte, MessageTransportHeaderSize), [12]byte{}
	counter := keypair.sendNonce.Add(1) - 1
	binary.LittleEndian.PutUint32(message, MessageTransportType)
	binary.LittleEndian.PutUint32(message[4:], keypair.remoteIndex)
	binary.LittleEndian.PutUint64(message[8:], counter)
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	if err := peer.SendBuffers([][]byte{keypair.send.Seal(message, nonce[:], content, nil)}); err != nil {
		tb.Fatal(err)
	}
}

// arrives is what a receiver makes of the content: nil, or an IP packet without padding.
func arrives(content []byte) []byte {
	size := 0
	switch {
	case len(content) >= 20 && content[0]>>4 == 4 && bytes.Equal(content[12:16], []byte{1, 0, 0, 2}):
		size = int(binary.BigEndian.Uint16(content[2:]))
		if size < 20 {
			return nil
		}
	case len(content) >= 40 && content[0]>>4 == 6:
		size = 40 + int(binary.BigEndian.Uint16(content[4:]))
	}
	if size == 0 || size > len(content) {
		return nil
	}
	return content[:size]
}

func (pair *testPair) expect(tb testing.TB, content []byte) {
	pair.sendInside(tb, content)
	if want := arrives(content); want != nil {
		select {
		case got := <-pair[0].tun.Inbound:
			if !bytes.Equal(got, want) {
				tb.Errorf("%x arrived as %x", want, got)
			}
		case <-time.After(5 * time.Second):
			tb.Errorf("%x did not arrive", want)
		}
	}
	pair.Send(tb, Ping, nil) // which arrives next
}

func packets4And6() (v4, v6 []byte) {
	v4 = tuntest.Ping(netip.AddrFrom4([4]byte{1, 0, 0, 1}), netip.AddrFrom4([4]byte{1, 0, 0, 2}))
	v6 = make([]byte, 60)
	v6[0], v6[5] = 0x60, 20
	return v4, v6
}

// A peer's packets are no longer than they say, and no shorter than their headers.
func TestLengthsOfAPeersPackets(t *testing.T) {
	pair := hostilePair(t)
	v4, v6 := packets4And6()
	for _, length := range []uint16{0, 1, 19, 20, 21, 40, 41, 60, 61, 65495, 65496, 65500, 65520, 65535} {
		binary.BigEndian.PutUint16(v4[2:], length)
		pair.expect(t, v4)
		binary.BigEndian.PutUint16(v6[4:], length)
		pair.expect(t, v6)
	}
}

// FuzzPeersPackets sends any content from a peer. It must not keep the next packet away.
func FuzzPeersPackets(f *testing.F) {
	pair := hostilePair(f)
	v4, v6 := packets4And6()
	for _, seed := range [][]byte{{}, {0}, v4, v6, v4[:19], v6[:39], append(bytes.Clone(v4), 0, 0, 0)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) <= maxFuzzed {
			pair.expect(t, content)
		}
	})
}

// FuzzDatagrams sends any datagram from anybody.
func FuzzDatagrams(f *testing.F) {
	pair := hostilePair(f)
	for _, size := range []int{0, 1, 31, 32, MessageInitiationSize, MessageResponseSize, MessageCookieReplySize} {
		for kind := range byte(5) {
			datagram := make([]byte, size)
			copy(datagram, []byte{kind})
			f.Add(datagram)
		}
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		if len(datagram) > maxFuzzed {
			return
		}
		if err := onlyPeer(pair[1].dev).SendBuffers([][]byte{datagram}); err != nil {
			t.Fatal(err)
		}
		pair.Send(t, Ping, nil)
	})
}
