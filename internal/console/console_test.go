package console

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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

// Everything written comes out in order, from a copy of the caller's buffer, until the Writer is closed. The race
// detector checks that Write and Close may be called from several goroutines.
func TestWriter(t *testing.T) {
	var out bytes.Buffer
	c := New(&out)
	want, buf := "", make([]byte, 1)
	for i := range 100 {
		buf[0] = byte(i)
		want += string(buf)
		c.Write(buf)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c.Close(time.Minute)
			c.Write([]byte("late"))
		})
	}
	wg.Wait()
	check(t, "wrote", out.String(), want)
}

// A console that accepts nothing blocks neither Write nor, after its timeout, Close. Writes are dropped and counted.
func TestStalledConsole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out, in := io.Pipe()
		c := New(in)
		for range queueSize + 11 { // one is being written, ten are dropped
			c.Write([]byte("x\n"))
			synctest.Wait()
		}
		io.ReadFull(out, make([]byte, len("x\nx\n")))
		synctest.Wait()
		c.Write([]byte("y\n"))
		c.Write([]byte("z\n"))
		start := time.Now()
		c.Close(time.Second)
		check(t, "Close took", time.Since(start).String(), "1s")
		want := strings.Repeat("x\n", queueSize-1) + "(10 messages dropped here: the console was not keeping up)\ny\nz\n"
		got := make([]byte, len(want))
		io.ReadFull(out, got)
		check(t, "wrote at the end", string(got), want)
	})
}

func TestText(t *testing.T) {
	over := new(big.Int).Lsh(big.NewInt(1), 64)
	for _, c := range [][2]string{
		{Plural(0, "token"), "0 tokens"}, {Plural(int64(1), "token"), "1 token"}, {Plural(2, "token"), "2 tokens"},
		{Plural(big.NewInt(1), "token"), "1 token"}, {Plural(over, "token"), "18446744073709551616 tokens"},
		{Percent(1, big.NewInt(3)), "33.3%"}, {Percent(1<<62, over), "25.0%"},
		{Duration(time.Second - 1), "less than 1s"}, {Duration(90*time.Second + 1), "1m30s"},
		{ShortDuration(10 * time.Minute), "10m"}, {ShortDuration(70 * time.Minute), "1h10m"},
		{ShortDuration(20 * time.Hour), "20h"}, {ShortDuration(time.Hour + time.Second), "1h0m1s"},
		{ShortDuration(time.Millisecond), "1ms"},
		{Quote("a\"b\x1b[2J\u202e\u009b", 40), `"a\"b\x1b[2J\u202e\u009b"`},
		{Quote(strings.Repeat("x", 38), 40), `"` + strings.Repeat("x", 38) + `"`},
		{Quote(strings.Repeat("x", 39), 40), `"` + strings.Repeat("x", 37) + `…"`},
	} {
		check(t, "text", c[0], c[1])
	}
}

func TestJoin(t *testing.T) {
	var all []net.Addr
	const addrs = "127.0.0.1/8 ::1/128 2001:db8::1/64 fe80::1/64 192.0.2.2/24 169.254.1.1/16 10.0.0.3/8"
	for _, addr := range strings.Fields(addrs) {
		ip, network, _ := net.ParseCIDR(addr)
		all = append(all, &net.IPNet{IP: ip, Mask: network.Mask})
	}
	const here, other = "to join, type:             nc ", "or, from another machine:  nc "
	const v4 = other + "192.0.2.2 9000\n" + other + "10.0.0.3 9000\n"
	for listening, want := range map[string]string{
		"[::]:9000":           here + "localhost 9000\n" + v4 + other + "2001:db8::1 9000\n",
		"0.0.0.0:9000":        here + "localhost 9000\n" + v4,
		"[::1]:80":            here + "::1 80\n",
		"192.0.2.2:9000":      here + "192.0.2.2 9000\n",
		"[fe80::1%eth0]:9000": here + "fe80::1%eth0 9000\n",
	} {
		check(t, listening, join(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(listening)), all), want)
	}
	unspecified := &net.TCPAddr{IP: net.IPv6unspecified, Port: 9000}
	check(t, "many addresses", join(unspecified, append(all, all...)), here+"localhost 9000\n"+v4+v4)
	if got := Join(unspecified); !strings.HasPrefix(got, here+"localhost 9000\n") {
		t.Errorf("got %s", got)
	}
}

// A report lists up to 20 validators, or else the newest. It names up to 5 that left or were slashed, or else counts
// them.
func TestRosterShow(t *testing.T) {
	r, validators := NewRoster(), map[string]int64{}
	shows := func(want ...string) {
		t.Helper()
		var out strings.Builder
		r.Show(&out, log.New(&out, "log: ", 0), validators)
		check(t, "report", out.String(), strings.Join(want, ""))
	}
	// each records a change of the validators from first to last, whose stakes are their numbers. It returns their lines.
	each := func(record func(address string, stake int64), format string, first, last int64) (lines string) {
		for n := first; n <= last; n++ {
			delete(validators, fmt.Sprint("v", n))
			record(fmt.Sprint("v", n), n)
			lines += fmt.Sprintf("  "+format+"\n", n)
		}
		return lines
	}
	join := func(address string, stake int64) {
		validators[address] = stake
		r.Join(address)
	}
	slash := func(address string, stake int64) { r.Slash(address, stake, `"x"`) }
	const current, left = "v%[1]d %[1]d", "left: v%[1]d %[1]d"
	const slashed = "slashed: v%[1]d\n    lost %[1]d tokens for typing \"x\""

	shows()
	r.Disconnected()
	r.Disconnected()
	shows("log: disconnected 2 clients that did not keep up\n")
	slash("v1", 1)
	shows("validators: 0 (0 tokens staked)\n  slashed: v1\n    lost 1 token for typing \"x\"\n",
		each(slash, slashed, 2, 5))
	validators["a"], validators["b"] = math.MaxInt64, math.MaxInt64
	older, newer := each(join, current, 30, 37), each(join, current, 20, 29)
	shows("validators: 20 (18446744073709552127 tokens staked)\n",
		"  a 9223372036854775807\n  b 9223372036854775807\n", newer, older)
	shows("validators: 21 (18446744073709552167 tokens staked)\n", each(join, current, 40, 40))
	each(join, current, 51, 53)
	newest := each(join, current, 54, 71)
	each(join, current, 72, 73)
	shows("validators: 42 (18446744073709553448 tokens staked)\n", newest, "  and 3 more joined\n",
		each(r.Leave, left, 72, 73))
	shows("validators: 37 (18446744073709553338 tokens staked)\n", each(r.Leave, left, 20, 24))
	each(r.Leave, left, 51, 56)
	each(slash, slashed, 57, 62)
	shows("validators: 25 (18446744073709552660 tokens staked)\n  left: 6 validators\n  slashed: 6 validators\n")
}

// A report is due a second after the first change, but not within five seconds of the last report.
func TestRosterDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, reports := NewRoster(), ""
		time.Sleep(2 * time.Hour) // without a change, nothing is due
		start := time.Now()
		show := func() {
			reports += fmt.Sprint(time.Since(start), " ")
			r.Show(io.Discard, log.New(io.Discard, "", 0), nil)
		}
		show() // nothing, so the next report need not wait
		for tenth := range 10_000 {
			if tenth >= 450 && tenth < 550 || slices.Contains([]int{10, 15, 30, 300, 345, 400, 402}, tenth) {
				r.Disconnected()
			}
			select {
			case <-r.Due.C:
				show()
			default:
			}
			if tenth == 402 {
				show() // early
			}
			time.Sleep(time.Second / 10)
		}
		check(t, "reports after", reports, "0s 2s 7s 31s 36s 40.2s 46s 51s 56s ")
	})
}

// A task that takes longer than a second is shown once a second, and taken back, but only on a terminal.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, _ := os.Create(filepath.Join(t.TempDir(), "file"))
		defer file.Close()
		var out bytes.Buffer
		work := func(p *Progress, seconds int) string {
			for range 2 * seconds {
				time.Sleep(500 * time.Millisecond)
				p.Add(25)
			}
			p.Done()
			return out.String()
		}
		p := NewProgress(file, "loading", 200)
		check(t, "to a file", fmt.Sprint(p.w == io.Discard, work(p, 3)), "true")
		gone := "\r" + strings.Repeat(" ", len("loading: 50%")) + "\r"
		for seconds, want := range []string{"", "\rloading: 25%" + gone, "\rloading: 25%\rloading: 50%" + gone} {
			p := NewProgress(file, "loading", 200)
			p.w = &out
			out.Reset()
			check(t, "shown", work(p, seconds), want)
		}
		null, _ := os.Open(os.DevNull) // a character device, as a terminal is
		defer null.Close()
		check(t, "on a device", fmt.Sprint(NewProgress(null, "", 0).w == null), "true")
	})
}
