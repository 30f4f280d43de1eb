// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

func TestSetMTU(t *testing.T) {
	dev := NewDevice(tuntest.NewChannelTUN().TUN(), conn.NewDefaultBind(), NewLogger(LogLevelSilent, ""))
	defer dev.Close()

	want := dev.tun.mtu.Load()
	for value, accepted := range map[string]bool{
		"": false, "575": false, "576": true, "1280": true, "65535": true, "65536": false, "-1": false, "1e3": false,
	} {
		err := dev.IpcSet("mtu=" + value + "\n")
		if (err == nil) != accepted {
			t.Errorf("mtu=%s: %v", value, err)
		}
		if accepted {
			fmt.Sscan(value, &want)
			want = min(want, MaxContentSize)
		}
		if got := dev.tun.mtu.Load(); got != want {
			t.Errorf("mtu=%s: stored %d, want %d", value, got, want)
		}
	}
	if got, _ := dev.IpcGet(); strings.Contains(got, "mtu") {
		t.Errorf("get reports %q", got)
	}
}

func TestGetOwnPublicKey(t *testing.T) {
	dev := NewDevice(tuntest.NewChannelTUN().TUN(), conn.NewDefaultBind(), NewLogger(LogLevelSilent, ""))
	defer dev.Close()

	sk, err := newPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	dev.IpcSet(fmt.Sprintf("private_key=%x\n", sk[:]))
	pk := sk.publicKey()
	if got, _ := dev.IpcGet(); !strings.Contains(got, fmt.Sprintf("own_public_key=%x\n", pk[:])) {
		t.Errorf("get reports %q", got)
	}
}

func TestUAPIErrorsQuoteNoKey(t *testing.T) {
	const secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U"
	var log strings.Builder
	logf := func(format string, args ...any) { fmt.Fprintf(&log, format+"\n", args...) }
	logger := &Logger{Verbosef: DiscardLogf, Errorf: logf}
	dev := NewDevice(tuntest.NewChannelTUN().TUN(), conn.NewDefaultBind(), logger)
	defer dev.Close()

	peer := "public_key=" + strings.Repeat("01", 32) + "\n"
	for _, request := range []string{
		secret + "\n",
		"set=1\n" + secret + "\n\n",
		"set=1\n" + secret + "=\n\n",
		"set=1\nprivate_key=" + secret + "\n\n",
		"set=1\nlisten_port=" + secret + "\n\n",
		"set=1\n" + peer + secret + "=\n\n",
		"set=1\n" + peer + "preshared_key=" + secret + "\n\n",
		"set=1\n" + peer + "endpoint=" + secret + "\n\n",
	} {
		log.Reset()
		client, server := net.Pipe()
		go func() {
			io.WriteString(client, request)
			client.Close()
		}()
		go io.Copy(io.Discard, client)
		dev.IpcHandle(server)
		if log.Len() == 0 || strings.Contains(log.String(), secret) {
			t.Errorf("%.60q logged %q", request, log.String())
		}
	}
}
