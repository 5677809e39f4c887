package console

import (
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// Join returns the lines that tell players how to connect to a server that listens on addr. It asks the system for the
// addresses of this machine, and leaves out those of networks that are down.
func Join(addr net.Addr) string {
	var all []net.Addr
	interfaces, _ := net.Interfaces() // without them, the line for this machine remains
	for _, i := range interfaces {
		if addrs, err := i.Addrs(); err == nil && i.Flags&net.FlagRunning != 0 {
			all = append(all, addrs...)
		}
	}
	return join(addr, all)
}

// join returns the lines for a machine with these addresses. If the server listens on all of them, it names each one
// that other machines may reach. No zone tells other machines the way to a link-local address.
func join(listening net.Addr, all []net.Addr) string {
	at := netip.MustParseAddrPort(listening.String())
	if !at.Addr().IsUnspecified() {
		return fmt.Sprintf("to join, type:             nc %s %d\n", at.Addr(), at.Port())
	}
	lines := fmt.Sprintf("to join, type:             nc localhost %d\n", at.Port())
	for _, addr := range all {
		prefix, err := netip.ParsePrefix(addr.String())
		if err == nil && prefix.Addr().IsGlobalUnicast() && prefix.Addr().BitLen() <= at.Addr().BitLen() {
			lines += fmt.Sprintf("or, from another machine:  nc %s %d\n", prefix.Addr(), at.Port())
		}
	}
	return lines
}

// Plural returns a count with its noun, such as "1 token" or "2 tokens". n is any integer or a *big.Int.
func Plural(n any, noun string) string {
	count := fmt.Sprint(n)
	if count != "1" {
		noun += "s"
	}
	return count + " " + noun
}

// Percent returns the share that part has of total, which is above 0, such as "33.3%".
func Percent(part int64, total *big.Int) string {
	share, _ := new(big.Rat).SetFrac(big.NewInt(part), total).Float64()
	return fmt.Sprintf("%.1f%%", 100*share)
}

// Duration returns d in whole seconds, such as "1m30s".
func Duration(d time.Duration) string {
	if d < time.Second {
		return "less than 1s"
	}
	return d.Round(time.Second).String()
}

// Quote returns text in quotes and in ASCII, cut to a number of columns, so that text from strangers can neither hide
// nor do anything on a terminal.
func Quote(text string, columns int) string {
	quoted := strconv.QuoteToASCII(text[:min(len(text), columns)])
	if len(quoted) > columns {
		quoted = quoted[:columns-2] + `…"`
	}
	return quoted
}
