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

// How much a Roll shows, and how often.
const (
	listed = 20               // validators: all, or those who have joined
	named  = 5                // of those who have left or were slashed: more are only counted
	pause  = time.Second      // from the first news to their report
	price  = 30 * time.Second // between two reports, once burst of them were made without a rest
	burst  = 60
)

// Roster is the list of validators and their stakes, and what is new in it. It has one owner.
type Roster struct {
	// Due rings when there is something to Show.
	Due *time.Timer

	stakes map[string]int64 // of each address, in tokens
	total  big.Int          // their sum; may pass 64 bits
	news   *news            // nil: there is none
	paid   time.Time        // the reports so far are paid for, price each, until then
}

// news is what was not shown yet.
type news struct {
	joined, left, slashed some
	cutOff                int // terminals
}

// some is what has happened, of which only the newest is known.
type some struct {
	newest []string // listed at most
	count  int
}

func (s *some) add(what string) {
	s.newest = append(s.newest[max(0, len(s.newest)-listed+1):], what)
	s.count++
}

// NewRoster is a list of nobody.
func NewRoster() *Roster {
	due := time.NewTimer(time.Hour)
	due.Stop() // until there is news
	return &Roster{Due: due, stakes: map[string]int64{}}
}

// Join adds a validator at a new address.
func (r *Roster) Join(address string, stake int64) {
	r.stakes[address] = stake
	r.total.Add(&r.total, big.NewInt(stake))
	r.fresh().joined.add(address)
}

// Leave takes a validator off the list, if it is there.
func (r *Roster) Leave(address string) {
	if _, there := r.stakes[address]; !there {
		return
	}
	r.fresh().left.add(fmt.Sprintf("%s %d", address, r.remove(address)))
}

// Slash takes a validator off the list for what it has typed, which is shown as it is given: quoted.
func (r *Roster) Slash(address, typed string) {
	r.fresh().slashed.add(fmt.Sprintf("%s\n    %d tokens, for %s", address, r.remove(address), typed))
}

func (r *Roster) remove(address string) (stake int64) {
	stake = r.stakes[address]
	delete(r.stakes, address)
	r.total.Sub(&r.total, big.NewInt(stake))
	return stake
}

// Disconnected notes that a terminal was cut off, since it did not read.
func (r *Roster) Disconnected() { r.fresh().cutOff++ }

// fresh is the news, to be added to. Due rings soon after the first, but whoever joins and leaves all day long must not
// fill a disk.
func (r *Roster) fresh() *news {
	if r.news == nil {
		now := time.Now()
		if r.paid.Before(now) {
			r.paid = now
		}
		r.paid = r.paid.Add(price)
		r.Due.Reset(max(pause, r.paid.Sub(now)-burst*price))
		r.news = &news{}
	}
	return r.news
}

// Show shows the list and what is new on w, and warnings on l. It is to be called when Due has rung.
func (r *Roster) Show(w io.Writer, l *log.Logger) {
	fresh := r.news
	r.news = nil
	if fresh.cutOff > 0 {
		l.Printf("%d terminals cut off: they did not read", fresh.cutOff)
	}
	if fresh.joined.count+fresh.left.count+fresh.slashed.count == 0 {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "validators: %d with %d tokens staked\n", len(r.stakes), &r.total)
	shown, more := fresh.joined.newest, fresh.joined.count-len(fresh.joined.newest)
	if len(r.stakes) <= listed {
		shown, more = slices.Sorted(maps.Keys(r.stakes)), 0
	}
	for _, address := range shown {
		if stake, there := r.stakes[address]; there { // it may have left since
			fmt.Fprintf(&b, "  %s %d\n", address, stake)
		}
	}
	if more > 0 {
		fmt.Fprintf(&b, "  and %d more have joined\n", more)
	}
	fresh.left.show(&b, "left")
	fresh.slashed.show(&b, "slashed")
	io.WriteString(w, b.String()) // whole, or not at all
}

// show shows those who are gone, and how.
func (s some) show(b *strings.Builder, how string) {
	if s.count > named {
		fmt.Fprintf(b, "  %s: %d validators\n", how, s.count)
		return
	}
	for _, who := range s.newest {
		fmt.Fprintf(b, "  %s: %s\n", how, who)
	}
}
