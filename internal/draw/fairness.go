package draw

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"proofofstake/internal/console"
	"proofofstake/internal/linefile"
)

// tally sums up the rounds of one name in a draws file, or of several names.
type tally struct {
	name               string
	names              float64 // how many
	rounds, wins       int
	expected, variance float64 // of the wins: the sums of p and p (1 - p), where p is the share of the tickets in a round
}

// count adds a draw to the tallies of the names that could win it.
func count(tallies map[string]tally, d *Decoded) {
	_, tickets := d.Draw.Eligible()
	eligible, _ := tickets.Float64()
	for i, e := range d.Draw.Entries {
		if e.Note == slashed {
			continue
		}
		share := float64(e.Tickets) / eligible
		t := tallies[e.Name]
		t.name, t.names = e.Name, 1
		t.rounds++
		t.expected += share
		t.variance += share * (1 - share)
		if i == d.Outcome.Winner {
			t.wins++
		}
		tallies[e.Name] = t
	}
}

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
	tallies, rounds := map[string]tally{}, 0
	records, blocks := NewRecords(draws), linefile.NewScanner(chain, linefile.MaxLine)
	for d := records.next; d != nil; d = records.next {
		progress.Add(len(records.lines.Bytes()) + 1)
		if records.read(); isAnnounced(d, records.next, blocks) {
			count(tallies, d)
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
	_, err = io.WriteString(w, table(rounds, slices.SortedFunc(maps.Values(tallies), func(a, b tally) int {
		return cmp.Or(cmp.Compare(b.expected, a.expected), strings.Compare(a.name, b.name))
	})))
	return err
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

// table returns a table of the sorted tallies of all names. It lists 20 names, and the others together.
func table(rounds int, all []tally) string {
	const (
		maxListed = 20
		barWidth  = 30 // characters for the most wins
		enough    = 4  // variance of the wins, for a deviation of 2
	)
	listed, legend := slices.Clone(all[:min(len(all), maxListed)]), ""
	if rest := all[len(listed):]; len(rest) > 0 {
		others := tally{name: console.Plural(len(rest), "other"), names: float64(len(rest))}
		for _, t := range rest {
			others.rounds += t.rounds
			others.wins += t.wins
			others.expected += t.expected
		}
		// Exact if their share was always the same, and otherwise too large, so that z is not exaggerated.
		others.variance = others.expected * (1 - others.expected/float64(rounds))
		listed, legend = append(listed, others), "The bar of the others shows their average.\n"
	}
	most, variance := 0.0, 0.0 // the largest ones
	for _, t := range listed {
		most = max(most, t.expected/t.names, float64(t.wins)/t.names)
	}
	for _, t := range all {
		variance = max(variance, t.variance)
	}
	text := fmt.Sprintf("%s, %s. Bar (=): wins. Mark (|): expected wins.\n\n%-12s %7s %9s %7s %6s\n",
		console.Plural(rounds, "round"), console.Plural(len(all), "validator"),
		"validator", "rounds", "expected", "wins", "z")
	for _, t := range listed {
		bar := fmt.Appendf(nil, "%-*s", barWidth+1, strings.Repeat("=", int(barWidth*float64(t.wins)/t.names/most)))
		bar[int(barWidth*t.expected/t.names/most)] = '|'
		z := (float64(t.wins) - t.expected) / math.Sqrt(max(t.variance, 1e-9))
		text += fmt.Sprintf("%-12.12s %7d %9.1f %7d %+6.1f  %s\n",
			t.name, t.rounds, t.expected, t.wins, z, bytes.TrimRight(bar, " "))
	}
	legend += "z: wins minus expected wins, in standard deviations. In a fair lottery with many\n" +
		"rounds, about 1 validator in 22 is beyond 2 (+ or -), and 1 in 370 beyond 3.\n"
	if variance == 0 {
		legend += "Nothing to tell: no validator had a rival.\n"
	} else if variance < enough {
		legend += fmt.Sprintf("Too few rounds to tell about one validator: it takes about %.0f more.\n",
			math.Ceil(float64(rounds)*enough/variance)-float64(rounds))
	}
	return text + "\n" + legend
}
