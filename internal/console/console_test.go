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
	"strings"
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
// race detector checks that Write may be called from any goroutine.
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
		start := time.Now()
		go c.Write([]byte("one too many\n"))
		c.Close(time.Second)
		c.Write([]byte("late\n"))
		check(t, "Close took", time.Since(start).String(), "1s")
		want := strings.Repeat("x\n", queueSize-1) + "(10 messages dropped here: the console was not keeping up)\ny\nz\n"
		got := make([]byte, len(want))
		io.ReadFull(out, got)
		check(t, "wrote", string(got), want)
		New(io.Discard).Close(time.Hour) // does not wait when nothing is pending
		check(t, "both took", time.Since(start).String(), "1s")
	})
}

func TestText(t *testing.T) {
	over := new(big.Int).Lsh(big.NewInt(1), 64)
	for _, c := range [][2]string{
		{Plural(0, "token"), "0 tokens"}, {Plural(over, "token"), "18446744073709551616 tokens"},
		{Percent(1<<62, over), "25.0%"}, {Duration(time.Second - 1), "less than 1s"}, {Duration(9e10 + 1), "1m30s"},
		{Quote("a\"b\x1b[2J\u202e\u009b", 40), `"a\"b\x1b[2J\u202e\u009b"`},
		{Quote(strings.Repeat("x", 38), 40), `"` + strings.Repeat("x", 38) + `"`},
		{Quote(strings.Repeat("x", 39), 40), `"` + strings.Repeat("x", 37) + `…"`},
	} {
		check(t, "text", c[0], c[1])
	}
}

func TestJoin(t *testing.T) {
	var all []net.Addr
	for _, ip := range strings.Fields("127.0.0.1 ::1 192.0.2.2 169.254.1.1 10.0.0.3 fe80::1 2001:db8::1") {
		all = append(all, &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(8, 128)})
	}
	const here, other = "to join, type:             nc ", "or, from another machine:  nc "
	const v4 = other + "192.0.2.2 9000\n" + other + "10.0.0.3 9000\n"
	for listening, want := range map[string]string{
		"[::]:9000":           here + "localhost 9000\n" + v4 + other + "2001:db8::1 9000\n",
		"0.0.0.0:9000":        here + "localhost 9000\n" + v4,
		"[fe80::1%eth0]:9000": here + "fe80::1%eth0 9000\n",
	} {
		check(t, listening, join(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(listening)), all), want)
	}
}

// A report lists up to 20 validators, or else the newest. It names up to 5 that left or were slashed, or else counts
// them.
func TestRosterShow(t *testing.T) {
	r, validators := NewRoster(), map[string]int64{"x": math.MaxInt64, "y": math.MaxInt64}
	shows := func(want string) {
		t.Helper()
		var out strings.Builder
		r.Show(&out, log.New(&out, "log: ", 0), validators)
		check(t, "report", out.String(), want)
	}
	join := func(name string) { validators[name] = 1; r.Join(name) }
	leave := func(name string) { delete(validators, name); r.Leave(name, 1) }
	slash := func(name string) { delete(validators, name); r.Slash(name, 1, `"a"`) }
	// each calls change for the validators from first to last, and returns their lines.
	each := func(change func(name string), first, last int, line string) (lines string) {
		for n := first; n <= last; n++ {
			change(fmt.Sprint("v", n))
			lines += fmt.Sprintf(line, n)
		}
		return lines
	}

	r.Disconnected()
	r.Disconnected()
	shows("log: disconnected 2 clients that did not keep up\n")
	shows("")
	const current, left = "  v%d 1\n", "  left: v%d 1\n"
	joined := each(join, 10, 27, current) + "  x 9223372036854775807\n  y 9223372036854775807\n"
	shows("validators: 20 (18446744073709551632 tokens staked)\n" + joined)
	each(join, 28, 30, current)
	newest := each(join, 31, 48, current)
	each(join, 49, 50, current)
	shows("validators: 41 (18446744073709551653 tokens staked)\n" + newest + each(leave, 49, 50, left))
	each(slash, 10, 15, "")
	shows("validators: 30 (18446744073709551642 tokens staked)\n" + each(leave, 16, 20, left) +
		"  slashed: 6 validators\n")
}

// A report is due a second after the first change, but not within five seconds of the last report.
func TestRosterDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, silent := NewRoster(), log.New(io.Discard, "", 0)
		isIdle := func() {
			select {
			case <-r.Due.C:
				t.Error("a report without changes is due")
			case <-time.After(2 * time.Hour):
			}
		}
		isIdle()
		r.Show(io.Discard, silent, nil) // nothing, so the next report need not wait
		// Each row has the seconds from the last report to a change, and to the next report.
		for _, s := range [][2]time.Duration{{0, 1}, {0, 5}, {4, 5}, {5, 6}} {
			last := time.Now()
			time.Sleep(s[0] * time.Second)
			r.Disconnected()
			time.Sleep(time.Second / 2)
			r.Disconnected()
			<-r.Due.C
			check(t, "report after", time.Since(last).String(), (s[1] * time.Second).String())
			r.Show(io.Discard, silent, nil)
		}
		r.Disconnected()
		r.Show(io.Discard, silent, nil) // early
		isIdle()
	})
}

// A task that takes longer than a second is shown once a second, and taken back, but only on a terminal.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, _ := os.Open(".") // not a terminal
		defer file.Close()
		p, out := NewProgress(file, "loading", 100), strings.Builder{}
		check(t, "on a file", fmt.Sprint(p.w == io.Discard), "true")
		p.w = &out
		for range 7 {
			time.Sleep(time.Second / 2)
			p.Add(25)
		}
		p.Done()
		check(t, "shown", out.String(), "\rloading: 50%\rloading: 100%\rloading: 100%\r             \r")
	})
}
