package console

import (
	"fmt"
	"io"
	"log"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A report lists up to 20 validators, or else the newest. It names up to 5 that left or were slashed, or else counts
// them.
func TestRosterShow(t *testing.T) {
	r, validators := NewRoster(), map[string]int64{}
	shows := func(want ...string) {
		t.Helper()
		var console, warnings strings.Builder
		r.Show(&console, log.New(&warnings, "log: ", 0), validators)
		if got, want := console.String()+warnings.String(), strings.Join(want, ""); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
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
		r.Join(address, stake)
	}
	slash := func(address string, stake int64) { r.Slash(address, stake, `"x"`) }
	const current, left = "v%[1]d %[1]d", "left: v%[1]d %[1]d"
	const slashed = "slashed: v%[1]d\n    lost %[1]d tokens for typing \"x\""
	const huge = "  a 9223372036854775807\n  b 9223372036854775807\n"

	shows()
	r.Disconnected()
	shows("log: disconnected 1 client that stopped reading\n")
	r.Disconnected()
	r.Disconnected()
	shows("validators: 1 (1 token staked)\n", each(join, current, 1, 1),
		"log: disconnected 2 clients that stopped reading\n")
	each(slash, slashed, 1, 1)
	shows("validators: 0 (0 tokens staked)\n  slashed: v1\n    lost 1 token for typing \"x\"\n")
	validators["a"], validators["b"] = math.MaxInt64, math.MaxInt64
	older, newer := each(join, current, 30, 37), each(join, current, 20, 29)
	shows("validators: 20 (18446744073709552127 tokens staked)\n", huge, newer, older)
	shows("validators: 21 (18446744073709552167 tokens staked)\n", each(join, current, 40, 40))
	each(join, current, 51, 53)
	newest := []string{each(join, current, 54, 62), each(join, current, 63, 71)}
	each(join, current, 72, 73)
	shows("validators: 42 (18446744073709553448 tokens staked)\n", newest[0], newest[1], "  and 3 more joined\n",
		each(r.Leave, left, 72, 73))
	shows("validators: 32 (18446744073709553203 tokens staked)\n",
		each(r.Leave, left, 20, 24), each(slash, slashed, 25, 29))
	each(r.Leave, left, 51, 56)
	each(slash, slashed, 57, 62)
	shows("validators: 20 (18446744073709552525 tokens staked)\n", huge, older, "  v40 40\n", newest[1],
		"  left: 6 validators\n  slashed: 6 validators\n")
}

// A report is due a second after the first change, but not within five seconds of the last report.
func TestRosterDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, start, reports := NewRoster(), time.Now(), ""
		show := func() {
			reports += fmt.Sprint(time.Since(start), " ")
			r.Show(io.Discard, log.New(io.Discard, "", 0), nil)
		}
		rejoin := func(seconds float64) {
			for end := time.After(time.Duration(seconds*float64(time.Second)) - time.Since(start)); ; {
				select {
				case <-r.Due.C:
					show()
				case <-end:
					r.Join("v", 1)
					r.Leave("v", 1)
					return
				}
			}
		}
		show() // nothing, so the next report need not wait
		for _, seconds := range []float64{1, 1.5, 3, 30, 34.5, 40, 40.2} {
			rejoin(seconds)
		}
		show() // early
		for n := range 100 {
			rejoin(45 + float64(n)/10)
		}
		rejoin(3600)
		if want := "0s 2s 7s 31s 36s 40.2s 46s 51s 56s "; reports != want {
			t.Errorf("reports after %s, want %s", reports, want)
		}
	})
}
