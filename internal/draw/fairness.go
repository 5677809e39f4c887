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

	"proofofstake/internal/console"
	"proofofstake/internal/linefile"
)

// tally is the record of one name in the draws of a file.
type tally struct {
	name               string
	rounds, wins       int
	expected, variance float64 // of the wins: the sums of p and p (1 - p), where p is the share of the tickets in a round
}

// zScore returns how many standard deviations the wins are above the expected ones.
func (t tally) zScore() float64 {
	return (float64(t.wins) - t.expected) / math.Sqrt(max(t.variance, 1e-9))
}

// count adds a draw to the tallies of the names that could win it.
func count(tallies map[string]tally, d *Draw, winner int) {
	_, tickets := d.Eligible()
	eligible, _ := new(big.Float).SetInt(tickets).Float64()
	for i, e := range d.Entries {
		if e.Slashed {
			continue
		}
		t, share := tallies[e.Name], float64(e.Tickets)/eligible
		t.name = e.Name
		t.rounds++
		if i == winner {
			t.wins++
		}
		t.expected += share
		t.variance += share * (1 - share)
		tallies[e.Name] = t
	}
}

const (
	maxListed = 20 // names in the table; the others share a line
	barWidth  = 30 // characters for the most wins
)

// Fairness shows on w whether wins follow tickets in the draws file name. The table has 80 columns.
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

// tabulate counts the draws of a file and shows the tallies, those with the most expected wins first.
func tabulate(w io.Writer, file io.Reader) error {
	tallies, rounds := map[string]tally{}, 0
	records := NewRecords(file)
	for ok := records.Scan(); ok; {
		d, winner, index := records.Draw, records.Outcome.Winner, records.Index
		if ok = records.Scan(); ok && records.Index == index {
			continue // the draw was never announced
		}
		count(tallies, d, winner)
		rounds++
	}
	if err := records.Err(); err != nil {
		return err
	}
	if rounds == 0 {
		return errors.New("no draws yet")
	}
	return show(w, rounds, slices.SortedFunc(maps.Values(tallies), func(a, b tally) int {
		return cmp.Or(cmp.Compare(b.expected, a.expected), strings.Compare(a.name, b.name))
	}))
}

// show shows the sorted tallies.
func show(w io.Writer, rounds int, all []tally) error {
	shown := slices.Clone(all[:min(len(all), maxListed)])
	if rest := all[len(shown):]; len(rest) > 0 {
		others := tally{name: console.Plural(len(rest), "other")}
		for _, t := range rest {
			others.rounds += t.rounds
			others.wins += t.wins
			others.expected += t.expected
			others.variance += t.variance
		}
		shown = append(shown, others)
	}
	most := 0.0
	for _, t := range shown {
		most = max(most, t.expected, float64(t.wins))
	}
	fmt.Fprintf(w, "%s, %s. Bar (=): wins. Mark (|): expected wins.\n\n",
		console.Plural(rounds, "round"), console.Plural(len(all), "validator"))
	fmt.Fprintf(w, "%-12s %7s %9s %7s %6s\n", "validator", "rounds", "expected", "wins", "z")
	for _, t := range shown {
		bar := fmt.Appendf(nil, "%-*s", barWidth+1, strings.Repeat("=", int(barWidth*float64(t.wins)/most)))
		bar[int(barWidth*t.expected/most)] = '|'
		fmt.Fprintf(w, "%-12.12s %7d %9.1f %7d %+6.1f  %s\n",
			t.name, t.rounds, t.expected, t.wins, t.zScore(), bytes.TrimRight(bar, " "))
	}
	var beyond [4]int // of the names with enough rounds to tell, by how many deviations at least
	for _, t := range all {
		for z := 0; z < len(beyond) && t.variance >= 4 && math.Abs(t.zScore()) >= float64(z); z++ {
			beyond[z]++
		}
	}
	_, err := fmt.Fprintf(w, "\nz: wins minus expected wins, in standard deviations. In a fair lottery about 1\n"+
		"validator in 22 is beyond 2 (+ or -), and 1 in 370 beyond 3. Of the %d with\n"+
		"enough rounds to tell (deviation of 2 wins or more): %d beyond 2, %d beyond 3.\n", beyond[0], beyond[2], beyond[3])
	return err
}
