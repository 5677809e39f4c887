package console

import (
	"fmt"
	"io"
	"log"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"
)

const (
	maxListed = 20 // validators in a report; if there are more, it lists those who joined last
	maxNamed  = 5  // validators that it names as left, and as slashed; more are only counted

	reportDelay    = time.Second     // after the first change
	reportInterval = 5 * time.Second // between two reports at least: a client that rejoins must not fill a disk
)

// Roster reports which validators have joined, left or been slashed. It has one owner.
type Roster struct {
	// Due fires when there is something to Show.
	Due *time.Timer

	changes    *changes // since the last report, or nil if there are none
	lastReport time.Time
}

type changes struct {
	joined        []string // their addresses
	left, slashed []string // their lines in the report
	disconnected  int      // clients
}

// NewRoster returns a Roster with nothing to report.
func NewRoster() *Roster {
	due := time.NewTimer(time.Hour)
	due.Stop() // until there are changes
	return &Roster{Due: due}
}

// Join records that a validator has joined.
func (r *Roster) Join(address string) {
	c := r.pendingChanges()
	c.joined = append(c.joined, address)
}

// Leave records that a validator has left.
func (r *Roster) Leave(address string, stake int64) {
	c := r.pendingChanges()
	c.left = append(c.left, fmt.Sprintf("  left: %s %d\n", address, stake))
}

// Slash records that a validator was slashed for what it typed. The caller must have quoted that.
func (r *Roster) Slash(address string, stake int64, typed string) {
	c := r.pendingChanges()
	lost := Plural(stake, "token")
	c.slashed = append(c.slashed, fmt.Sprintf("  slashed: %s\n    lost %s for typing %s\n", address, lost, typed))
}

// Disconnected records that a stalled client was disconnected.
func (r *Roster) Disconnected() { r.pendingChanges().disconnected++ }

// pendingChanges returns the changes since the last report, for the caller to add to. The first of them starts Due.
func (r *Roster) pendingChanges() *changes {
	if r.changes == nil {
		r.changes = &changes{}
		r.Due.Reset(max(reportDelay, time.Until(r.lastReport.Add(reportInterval))))
	}
	return r.changes
}

// Show reports the changes since the last report: the validators on w, disconnected clients on l. validators holds the
// stake of each current validator. Show may be called before Due fires. Without changes it does nothing.
func (r *Roster) Show(w io.Writer, l *log.Logger, validators map[string]int64) {
	if r.changes == nil {
		return
	}
	c := r.changes
	r.changes, r.lastReport = nil, time.Now()
	r.Due.Stop()
	if c.disconnected > 0 {
		l.Printf("disconnected %s that did not keep up", Plural(c.disconnected, "client"))
	}
	if len(c.joined)+len(c.left)+len(c.slashed) == 0 {
		return
	}
	total := new(big.Int) // may pass 64 bits
	for _, stake := range validators {
		total.Add(total, big.NewInt(stake))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "validators: %d (%s staked)\n", len(validators), Plural(total, "token"))
	listed := c.joined[max(0, len(c.joined)-maxListed):]
	if len(validators) <= maxListed {
		listed = slices.Sorted(maps.Keys(validators))
	}
	for _, address := range listed {
		if stake, ok := validators[address]; ok { // one that joined may have left since
			fmt.Fprintf(&b, "  %s %d\n", address, stake)
		}
	}
	b.WriteString(few("left", c.left) + few("slashed", c.slashed))
	io.WriteString(w, b.String()) // in one piece, so that a Writer drops all of it or nothing
}

// few returns the lines of those who left or were slashed, or only counts them if they are many.
func few(what string, lines []string) string {
	if len(lines) > maxNamed {
		return fmt.Sprintf("  %s: %s\n", what, Plural(len(lines), "validator"))
	}
	return strings.Join(lines, "")
}
