// Netstack's way to reach a tunnel: upstream's wireguard-go and gVisor's TCP/IP stack in one
// program, with a SOCKS 5 server. wireproxy is made of this, with more options.
//
// It takes its settings in UAPI's form on stdin, and prints the port that it listens on.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"

	"github.com/armon/go-socks5"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

func main() {
	address := flag.String("address", "", "ours, in the tunnel")
	mtu := flag.Int("mtu", 1420, "of the tunnel, in bytes")
	flag.Parse()
	settings, err := io.ReadAll(os.Stdin)
	check(err)

	tun, tunnel, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr(*address)}, nil, *mtu)
	check(err)
	engine := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	check(engine.IpcSet(string(settings)))
	check(engine.Up())

	server, err := socks5.New(&socks5.Config{
		Dial:   tunnel.DialContext,
		Logger: log.New(io.Discard, "", 0), // a client that ends early is no error
	})
	check(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	check(server.Serve(listener))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
