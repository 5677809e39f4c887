package console

import (
	"fmt"
	"io"
	"log"
	"math"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func check(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

// TestWriter writes to a console that accepts nothing. That blocks neither Write nor, after its timeout, Close. Later,
// everything comes out in order, from copies of the caller's buffer, but some writes were dropped and are counted. The
// race detector checks that the methods may be called from several goroutines.
func TestWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out, in := io.Pipe()
		c := New(in)
		buf := []byte("x\n")
		for range queueSize + 11 { // one is being written, ten are dropped
			c.Write(buf)
			synctest.Wait()
		}
		io.ReadFull(out, make([]byte, len("x\nx\n")))
		synctest.Wait()
		for _, buf[0] = range []byte("yz") {
			c.Write(buf)
		}
		start, closed := time.Now(), sync.WaitGroup{}
		for range 2 {
			closed.Go(func() {
				c.Close(time.Second)
				c.Write([]byte("late\n"))
			})
		}
		closed.Wait()
		check(t, "Close took", time.Since(start).String(), "1s")
		want := strings.Repeat("x\n", queueSize-1) + "(10 messages dropped here: the console was not keeping up)\ny\nz\n"
		got := make([]byte, len(want))
		io.ReadFull(out, got)
		check(t, "wrote", string(got), want)
		c.Close(time.Hour) // does not wait when all is written
		check(t, "both took", time.Since(start).String(), "1s")
	})
}

func TestText(t *testing.T) {
	over := new(big.Int).Lsh(big.NewInt(1), 64)
	for _, c := range [][2]string{
		{Plural(0, "token"), "0 tokens"}, {Plural(over, "token"), "18446744073709551616 tokens"},
		{Percent(1<<62, over), "25.0%"}, {Duration(time.Second - 1), "less than 1s"}, {Duration(9e10 + 1), "1m30s"},
		{ShortDuration(70 * time.Minute), "1h10m"}, {ShortDuration(20 * time.Hour), "20h"},
		{Quote("a\"b\x1b[2J\u202e\u009b", 40), `"a\"b\x1b[2J\u202e\u009b"`},
		{Quote(strings.Repeat("x", 38), 40), `"` + strings.Repeat("x", 38) + `"`},
		{Quote(strings.Repeat("x", 39), 40), `"` + strings.Repeat("x", 37) + `…"`},
	} {
		check(t, "text", c[0], c[1])
	}
}

func TestJoin(t *testing.T) {
	var all []net.Addr
	for _, addr := range strings.Fields("127.0.0.1/8 ::1/128 2001:db8::1/64 fe80::1/64 192.0.2.2/24 169.254.1.1/16 " +
		"10.0.0.3/8 2001:db8::2/64 10.0.0.4/8") {
		ip, network, _ := net.ParseCIDR(addr)
		all = append(all, &net.IPNet{IP: ip, Mask: network.Mask})
	}
	const here, other = "to join, type:             nc ", "or, from another machine:  nc "
	const v4 = other + "192.0.2.2 9000\n" + other + "10.0.0.3 9000\n" + other + "10.0.0.4 9000\n"
	for listening, want := range map[string]string{
		"[::]:9000":           here + "localhost 9000\n" + v4 + other + "2001:db8::1 9000\n",
		"0.0.0.0:9000":        here + "localhost 9000\n" + v4,
		"[::1]:80":            here + "::1 80\n",
		"[fe80::1%eth0]:9000": here + "fe80::1%eth0 9000\n",
	} {
		check(t, listening, join(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(listening)), all), want)
	}
	many := Join(&net.TCPAddr{IP: net.IPv6unspecified, Port: 9000}) // on this machine
	check(t, "first line", many[:min(len(many), len(here)+15)], here+"localhost 9000\n")
}

// A report lists up to 20 validators, or else the newest. It names up to 5 that left or were slashed, or else counts
// them.
func TestRosterShow(t *testing.T) {
	r, validators := NewRoster(), map[string]int64{"x": math.MaxInt64, "y": math.MaxInt64}
	shows := func(want ...string) {
		t.Helper()
		var out strings.Builder
		r.Show(&out, log.New(&out, "log: ", 0), validators)
		check(t, "report", out.String(), strings.Join(want, ""))
	}
	join := func(address string, stake int64) { validators[address] = stake; r.Join(address) }
	leave := func(address string, stake int64) { delete(validators, address); r.Leave(address, stake) }
	slash := func(address string, stake int64) { delete(validators, address); r.Slash(address, stake, `"a"`) }
	// each calls change for the validators from first to last, whose stakes are their numbers. It returns their lines.
	each := func(change func(address string, stake int64), first, last int64, format string) (lines string) {
		for n := first; n <= last; n++ {
			change(fmt.Sprintf("v%02d", n), n)
			lines += fmt.Sprintf(format, n)
		}
		return lines
	}
	const current, left = "  v%02[1]d %[1]d\n", "  left: v%02[1]d %[1]d\n"
	const slashed = "  slashed: v%02[1]d\n    lost %[1]d tokens for typing \"a\"\n"
	const xy = "  x 9223372036854775807\n  y 9223372036854775807\n"

	r.Disconnected()
	r.Disconnected()
	shows("log: disconnected 2 clients that did not keep up\n")
	shows()
	joined := each(join, 10, 27, current)
	shows("validators: 20 (18446744073709551947 tokens staked)\n", joined, xy)
	each(join, 28, 30, current)
	joined = each(join, 31, 48, current)
	each(join, 49, 50, current)
	shows("validators: 41 (18446744073709552745 tokens staked)\n", joined, each(leave, 49, 50, left))
	shows("validators: 31 (18446744073709552600 tokens staked)\n", each(leave, 10, 14, left), each(slash, 15, 19, slashed))
	each(leave, 20, 25, left)
	each(slash, 26, 31, slashed)
	shows("validators: 19 (18446744073709552294 tokens staked)\n", each(func(string, int64) {}, 32, 48, current), xy,
		"  left: 6 validators\n  slashed: 6 validators\n")
}

// A report is due a second after the first change, but not within five seconds of the last report.
func TestRosterDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, last := NewRoster(), time.Now()
		show := func() {
			r.Show(io.Discard, log.New(io.Discard, "", 0), nil)
			last = time.Now()
		}
		isIdle := func() {
			select {
			case <-r.Due.C:
				t.Error("a report without changes is due")
			case <-time.After(2 * time.Hour):
			}
		}
		isIdle()
		show() // nothing, so the next report need not wait
		// Each row has the seconds from the last report to a change, and to the next report.
		for _, s := range [][2]time.Duration{{0, 1}, {0, 5}, {4, 5}, {5, 6}, {9000, 9001}} {
			time.Sleep(s[0] * time.Second)
			r.Disconnected()
			time.Sleep(time.Second / 2)
			r.Disconnected()
			<-r.Due.C
			check(t, "report after", time.Since(last).String(), (s[1] * time.Second).String())
			show()
		}
		r.Disconnected()
		show() // early
		isIdle()
	})
}

// A task that takes longer than a second is shown once a second, and taken back, but only on a terminal.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, _ := os.Create(filepath.Join(t.TempDir(), "file"))
		defer file.Close()
		null, _ := os.Open(os.DevNull) // a character device, as a terminal is
		defer null.Close()
		check(t, "on a device", fmt.Sprint(NewProgress(null, "", 0).w == null), "true")
		p := NewProgress(file, "loading", 100)
		check(t, "on a file", fmt.Sprint(p.w == io.Discard), "true")
		var out strings.Builder
		p.w = &out
		for range 7 {
			time.Sleep(time.Second / 2)
			p.Add(25)
		}
		p.Done()
		check(t, "shown", out.String(), "\rloading: 50%\rloading: 100%\rloading: 100%\r             \r")
	})
}
