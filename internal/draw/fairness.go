package draw

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"slices"
	"strings"

	"proofofstake/internal/linefile"
)

// tally is how an entrant has fared in the draws of a file.
type tally struct {
	name               string
	rounds, wins       int
	expected, variance float64 // of the wins: the sums of p and of p (1 - p) over its shares p
}

// off is how many standard deviations the wins are above what was expected.
func (t tally) off() float64 {
	return (float64(t.wins) - t.expected) / math.Sqrt(max(t.variance, 1e-9))
}

// add adds what another has fared.
func (t *tally) add(rounds, wins int, expected, variance float64) {
	t.rounds += rounds
	t.wins += wins
	t.expected += expected
	t.variance += variance
}

// count adds a draw to the tallies of those who could win it.
func count(tallies map[string]tally, d *Draw, winner int) {
	_, tickets := d.Eligible()
	canWin, _ := new(big.Float).SetInt(tickets).Float64()
	for i, e := range d.Entries {
		if e.Slashed {
			continue
		}
		wins, share := 0, float64(e.Tickets)/canWin
		if i == winner {
			wins = 1
		}
		t := tallies[e.Name]
		t.name = e.Name
		t.add(1, wins, share, share*(1-share))
		tallies[e.Name] = t
	}
}

const (
	listed   = 20 // entrants in the table; the others share a line
	barWidth = 30 // characters for the most wins
)

// Fairness shows on w whether wins follow tickets, from the draws file name, in 80 columns.
func Fairness(w io.Writer, name string) error {
	file, err := linefile.OpenSnapshot(name)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := tabulate(w, file); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// tabulate counts the draws of a file and shows what it has come to.
func tabulate(w io.Writer, file io.Reader) error {
	tallies, rounds := map[string]tally{}, 0
	records := NewRecords(file)
	for more := records.Scan(); more; {
		d, winner, index := records.Draw, records.Outcome.Winner, records.Index
		if more = records.Scan(); more && records.Index == index {
			continue // it was never announced
		}
		count(tallies, d, winner)
		rounds++
	}
	if err := records.Err(); err != nil {
		return err
	}
	if rounds == 0 {
		return errors.New("there is no draw in it yet")
	}
	return show(w, rounds, slices.SortedFunc(maps.Values(tallies), func(a, b tally) int {
		return cmp.Or(cmp.Compare(b.expected, a.expected), strings.Compare(a.name, b.name))
	}))
}

// show shows all the tallies, which are sorted.
func show(w io.Writer, rounds int, all []tally) error {
	shown := slices.Clone(all[:min(len(all), listed)])
	if rest := all[len(shown):]; len(rest) > 0 {
		others := tally{name: fmt.Sprintf("%d others", len(rest))}
		for _, t := range rest {
			others.add(t.rounds, t.wins, t.expected, t.variance)
		}
		shown = append(shown, others)
	}
	most := 0.0
	for _, t := range shown {
		most = max(most, t.expected, float64(t.wins))
	}
	fmt.Fprintf(w, "%d rounds, %d validators; bars show wins, marks what was expected\n\n", rounds, len(all))
	fmt.Fprintf(w, "%-12s %7s %9s %7s %6s\n", "validator", "rounds", "expected", "wins", "off")
	for _, t := range shown {
		bar := fmt.Appendf(nil, "%-*s", barWidth+1, strings.Repeat("=", int(barWidth*float64(t.wins)/most)))
		bar[int(barWidth*t.expected/most)] = '|'
		fmt.Fprintf(w, "%-12.12s %7d %9.1f %7d %+6.1f  %s\n",
			t.name, t.rounds, t.expected, t.wins, t.off(), bytes.TrimRight(bar, " "))
	}
	var judged [4]int // who took part often enough, by how far they are off at least
	for _, t := range all {
		if t.variance < 4 {
			continue
		}
		for off := range min(3, int(math.Abs(t.off()))) + 1 {
			judged[off]++
		}
	}
	_, err := fmt.Fprintf(w, "\noff: wins less those expected, in standard deviations. In a fair lottery about 1\n"+
		"validator in 22 is off by 2 or more, and 1 in 370 by 3 or more. Here, of %d who\n"+
		"took part often enough to tell (a standard deviation of 2 wins): %d and %d.\n", judged[0], judged[2], judged[3])
	return err
}
