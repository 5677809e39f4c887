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
	"os"
	"slices"
	"strings"

	"proofofstake/internal/console"
	"proofofstake/internal/linefile"
)

// tally is the record of one name in the draws of a file, or of several names taken together.
type tally struct {
	name               string
	extra              int // names besides the first
	rounds, wins       int
	expected, variance float64 // of the wins: the sums of p and p (1 - p), where p is the share of the tickets in a round
}

// zScore returns how many standard deviations the wins are above the expected ones.
func (t tally) zScore() float64 {
	return (float64(t.wins) - t.expected) / math.Sqrt(max(t.variance, 1e-9))
}

// average returns n wins, or expected wins, divided by the number of names.
func (t tally) average(n float64) float64 { return n / float64(1+t.extra) }

// add adds a round in which the share of the tickets was share.
func (t *tally) add(share float64, hasWon bool) {
	t.rounds++
	if hasWon {
		t.wins++
	}
	t.expected += share
	t.variance += share * (1 - share)
}

// count adds a draw to the tallies of the names that could win it, and to large, the tally of those that hold more
// tickets than the average in that draw.
func count(tallies map[string]tally, large *tally, d *Draw, winner int) {
	names, tickets := d.Eligible()
	eligible, _ := new(big.Float).SetInt(tickets).Float64()
	largeShare, largeWon := 0.0, false
	for i, e := range d.Entries {
		if e.Slashed {
			continue
		}
		t, share := tallies[e.Name], float64(e.Tickets)/eligible
		t.name = e.Name
		t.add(share, i == winner)
		tallies[e.Name] = t
		if share*float64(names) > 1+1e-9 { // not by rounding
			largeShare, largeWon = largeShare+share, largeWon || i == winner
		}
	}
	large.add(largeShare, largeWon)
}

const (
	maxListed = 20 // names in the table; the others share a line
	barWidth  = 30 // characters for the most wins
)

// Fairness shows on w whether wins follow tickets in a draws file. The table has 80 columns. Only announced draws
// count. The chain file tells whether the last draw was announced. Without it, or with another chain, the draw counts.
func Fairness(w io.Writer, drawsName, chainName string) error {
	if drawsName == "" {
		return errors.New("nothing to count: DRAWS_FILE is empty, so no draws are saved; name a file")
	}
	if _, err := os.Stat(chainName); err != nil {
		chainName = os.DevNull
	}
	draws, chain, err := linefile.OpenSnapshots(drawsName, chainName)
	if err != nil {
		return err
	}
	defer draws.Close()
	defer chain.Close()
	progress := console.NewProgress(os.Stderr, "reading "+drawsName, draws.Size())
	tallies, large, rounds := map[string]tally{}, tally{}, 0
	records, blocks := NewRecords(draws), linefile.NewScanner(chain, linefile.MaxLine)
	for d := records.next; d != nil; d = records.next {
		progress.Add(len(records.lines.Bytes()) + 1)
		if records.read(); isAnnounced(d, records.next, blocks) {
			count(tallies, &large, d.Draw, d.Outcome.Winner)
			rounds++
		}
	}
	progress.Done()
	switch {
	case records.err != nil:
		return fmt.Errorf("%s: %w", drawsName, records.err)
	case rounds == 0:
		return fmt.Errorf("%s: no draws yet", drawsName)
	}
	return show(w, rounds, large, slices.SortedFunc(maps.Values(tallies), func(a, b tally) int {
		return cmp.Or(cmp.Compare(b.expected, a.expected), strings.Compare(a.name, b.name))
	}))
}

// isAnnounced reports whether the block of d was announced. The next record tells if it is of the same block, or of the
// one after it. If not, or if next is nil, isAnnounced reads on in the chain, which tells if it has the block before.
func isAnnounced(d, next *Decoded, blocks *linefile.Scanner) bool {
	if next != nil && next.Index <= d.Index+1 {
		return next.Draw.PrevBlock == d.Block
	}
	for blocks.Number() < d.Index && blocks.Scan() {
	}
	hasBlockBefore := bytes.Contains(blocks.Bytes(), []byte(d.Draw.PrevBlock))
	return !hasBlockBefore || blocks.Scan() && bytes.Contains(blocks.Bytes(), []byte(d.Block))
}

// show shows the sorted tallies of the names, and the tally of the large stakes.
func show(w io.Writer, rounds int, large tally, all []tally) error {
	shown, legend := slices.Clone(all[:min(len(all), maxListed)]), ""
	if rest := all[len(shown):]; len(rest) > 0 {
		others := tally{name: console.Plural(len(rest), "other"), extra: len(rest) - 1}
		for _, t := range rest {
			others.rounds += t.rounds
			others.wins += t.wins
			others.expected += t.expected
			others.variance += t.variance
		}
		// The sum is too large, because only one of them can win a round. The other figure is exact if their share was
		// always the same, and otherwise too large as well. So z is not exaggerated.
		others.variance = min(others.variance, others.expected*(1-others.expected/float64(rounds)))
		shown, legend = append(shown, others), "\nThe bar of the others shows their average."
	}
	most := 0.0
	for _, t := range shown {
		most = max(most, t.average(t.expected), t.average(float64(t.wins)))
	}
	fmt.Fprintf(w, "%s, %s. Bar (=): wins. Mark (|): expected wins.\n\n",
		console.Plural(rounds, "round"), console.Plural(len(all), "validator"))
	fmt.Fprintf(w, "%-12s %7s %9s %7s %6s\n", "validator", "rounds", "expected", "wins", "z")
	for _, t := range shown {
		bar := fmt.Appendf(nil, "%-*s", barWidth+1, strings.Repeat("=", int(barWidth*t.average(float64(t.wins))/most)))
		bar[int(barWidth*t.average(t.expected)/most)] = '|'
		fmt.Fprintf(w, "%-12.12s %7d %9.1f %7d %+6.1f  %s\n",
			t.name, t.rounds, t.expected, t.wins, t.zScore(), bytes.TrimRight(bar, " "))
	}
	const enough = 4                  // variance of the wins, for a deviation of 2
	variance, beyond := 0.0, [4]int{} // the largest; names with enough rounds to tell, by deviations at least
	for _, t := range all {
		variance = max(variance, t.variance)
		for z := 0; z < len(beyond) && t.variance >= enough && math.Abs(t.zScore()) >= float64(z); z++ {
			beyond[z]++
		}
	}
	legend += "\nz: wins minus expected wins, in standard deviations. In a fair lottery about 1\n" +
		"validator in 22 is beyond 2 (+ or -), and 1 in 370 beyond 3."
	switch {
	case variance >= enough:
		legend += fmt.Sprintf(" Of the %d with\nenough rounds to tell (deviation of 2 wins or more): %d beyond 2, "+
			"%d beyond 3.", beyond[0], beyond[2], beyond[3])
	case variance > 0:
		legend += fmt.Sprintf("\nToo few rounds to tell about one validator: it takes about %.0f more.",
			math.Ceil(float64(rounds)*enough/variance)-float64(rounds))
	default:
		legend += "\nNothing to tell: no validator had a rival."
	}
	if large.variance >= enough {
		legend += fmt.Sprintf("\nStakes above the average won %d of %s: %.1f expected, z %+.1f.",
			large.wins, console.Plural(large.rounds, "round"), large.expected, large.zScore())
	}
	_, err := fmt.Fprintln(w, legend)
	return err
}
