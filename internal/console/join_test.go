package console

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestJoin(t *testing.T) {
	var all []net.Addr
	const addrs = "127.0.0.1/8 ::1/128 2001:db8::1/64 fe80::1/64 192.0.2.2/24 169.254.1.1/16 10.0.0.3/8"
	for _, addr := range strings.Fields(addrs) {
		ip, network, _ := net.ParseCIDR(addr)
		all = append(all, &net.IPNet{IP: ip, Mask: network.Mask})
	}
	const here, others = "to join, type:             nc ", "or, from another machine:  nc "
	const v4 = here + "localhost 9000\n" + others + "192.0.2.2 9000\n" + others + "10.0.0.3 9000\n"
	for listening, want := range map[string]string{
		"[::]:9000":           v4 + others + "2001:db8::1 9000\n",
		"0.0.0.0:9000":        v4,
		"127.0.0.1:9000":      here + "127.0.0.1 9000\n",
		"[::1]:80":            here + "::1 80\n",
		"192.0.2.2:9000":      here + "192.0.2.2 9000\n",
		"[fe80::1%eth0]:9000": here + "fe80::1%eth0 9000\n",
	} {
		check(t, listening, join(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(listening)), all), want)
	}
	all = append(all, all...)
	listening := &net.TCPAddr{IP: net.IPv6unspecified, Port: 9000}
	check(t, "many addresses", join(listening, all), v4+v4[len(here+"localhost 9000\n"):])
	if got := Join(listening); !strings.HasPrefix(got, here+"localhost 9000\n") {
		t.Errorf("got %s", got)
	}
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Minute: "1m", 10 * time.Minute: "10m", time.Hour: "1h", 70 * time.Minute: "1h10m", 20 * time.Hour: "20h",
		30 * time.Second: "30s", 90 * time.Second: "1m30s", time.Hour + time.Second: "1h0m1s", time.Millisecond: "1ms",
	} {
		check(t, "duration", ShortDuration(d), want)
	}
}
