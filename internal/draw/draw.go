// Package draw is a sealed lottery that anybody can check with sha256sum and a calculator.
//
// Whoever runs the lottery makes a secret before there is any entry, and tells its seal, which is its hash.
// Each entry has tickets, numbered on from those before. At the end the secret is told. The hash of the
// secret and all entries, read as a number, says which ticket wins: nobody who enters can foresee it, and who
// runs the lottery settled its part before it saw the entries. What that does not prove: that no entry was
// left out, or added at the last moment by who knew the secret.
//
// The hash is SHA-256 of lines, each followed by a newline: the secret, then for each entry, in order,
// "<name> <tickets> <note>". An entry that is slashed keeps its line and its tickets, with "slashed"
// for its note. If one of its tickets comes up, the hash of that hash decides among the tickets of the
// others, renumbered from 1 in the same order.
package draw

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Draw is one lottery. It has one owner.
type Draw struct {
	Entries []Entry // in order; only Add and Slash change them

	secret    string
	total     big.Int // tickets; may pass 64 bits
	slashed   int     // entries that cannot win
	forfeited big.Int // their tickets
}

// Entry is one who takes part. Name and note are words: visible ASCII without a space.
type Entry struct {
	Name    string
	Tickets int64  // above 0
	Note    string // not "slashed"
	Slashed bool
}

// slashed is the note of an entry that cannot win.
const slashed = "slashed"

// New is a draw without entries and with a secret of 130 random bits.
func New() *Draw { return &Draw{secret: rand.Text()} }

// Again is a draw without entries and with the secret of d, for when d had no winner.
func (d *Draw) Again() *Draw { return &Draw{secret: d.secret} }

// Secret is to be told only when no entry will be added any more.
func (d *Draw) Secret() string { return d.secret }

// Seal is what may be told of the secret at any time: printf '%s\n' "$secret" | sha256sum
func (d *Draw) Seal() string {
	sum := sha256.Sum256([]byte(d.secret + "\n"))
	return hex.EncodeToString(sum[:])
}

// Add appends e and returns its first and its last ticket.
func (d *Draw) Add(e Entry) (first, last *big.Int) {
	first = new(big.Int).Add(&d.total, big.NewInt(1))
	d.add(e)
	return first, new(big.Int).Set(&d.total)
}

func (d *Draw) add(e Entry) {
	d.Entries = append(d.Entries, e)
	d.total.Add(&d.total, big.NewInt(e.Tickets))
}

// Slash makes entry i, which was not slashed before, unable to win. It costs the same however many there are.
func (d *Draw) Slash(i int) {
	d.Entries[i].Slashed = true
	d.slashed++
	d.forfeited.Add(&d.forfeited, big.NewInt(d.Entries[i].Tickets))
}

// Eligible is how many entries can win, and how many tickets they hold.
func (d *Draw) Eligible() (entries int, tickets *big.Int) {
	return len(d.Entries) - d.slashed, new(big.Int).Sub(&d.total, &d.forfeited)
}

// Lines is the lines of the draw, each followed by a newline.
func (d *Draw) Lines() string {
	b := make([]byte, 0, 128+80*len(d.Entries)) // enough for addresses
	b = append(b, d.secret+"\n"...)
	for _, e := range d.Entries {
		b = append(append(b, e.Name...), ' ')
		b = append(strconv.AppendInt(b, e.Tickets, 10), ' ')
		if e.Slashed {
			e.Note = slashed
		}
		b = append(append(b, e.Note...), '\n')
	}
	return string(b)
}

// Parse is the reverse of Lines. It takes nothing but what Lines gives.
func Parse(lines []string) (*Draw, error) {
	if len(lines) == 0 || len(lines[0]) < 26 || !isWord(lines[0]) {
		return nil, errors.New("its lines do not begin with a secret of 26 or more characters")
	}
	d := &Draw{secret: lines[0], Entries: make([]Entry, 0, len(lines)-1)}
	for i, line := range lines[1:] {
		name, rest, _ := strings.Cut(line, " ")
		tickets, note, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(tickets, 10, 64)
		if err != nil || n < 1 || strconv.FormatInt(n, 10) != tickets || !isWord(name) || !isWord(note) {
			return nil, fmt.Errorf("%.100q is no entry of a draw", line)
		}
		if d.add(Entry{Name: name, Tickets: n, Note: note}); note == slashed {
			d.Slash(i)
		}
	}
	return d, nil
}

// isWord says whether s is visible ASCII without a space: then lines made of words can be read in one way only.
func isWord(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}

// Outcome is what a draw has come to.
type Outcome struct {
	Winner        int      // the entry; -1: none could win
	Lines         string   // of the draw
	Ticket, Total *big.Int // that decided
	slashed       string   // if a slashed ticket came up first, the words for it
}

// String is "ticket <t> of <total>", behind the words for a slashed ticket.
func (o Outcome) String() string {
	return fmt.Sprintf("%sticket %d of %d", o.slashed, o.Ticket, o.Total)
}

// Outcome draws. It is the same each time, and takes as long as hashing lines, which must be d.Lines():
// however many tickets there are, and whoever was slashed.
func (d *Draw) Outcome() Outcome {
	lines := d.Lines()
	_, canWin := d.Eligible()
	if canWin.Sign() == 0 {
		return Outcome{Winner: -1}
	}
	sum := sha256.Sum256([]byte(lines))
	o := Outcome{Lines: lines, Total: new(big.Int).Set(&d.total)}
	o.Ticket = ticket(sum, o.Total)
	if o.Winner = d.holder(o.Ticket, true); d.Entries[o.Winner].Slashed {
		o.slashed = fmt.Sprintf("ticket %d of %d was slashed; redraw: ", o.Ticket, o.Total)
		sum = sha256.Sum256([]byte(hex.EncodeToString(sum[:]) + "\n"))
		o.Ticket, o.Total = ticket(sum, canWin), canWin
		o.Winner = d.holder(o.Ticket, false)
	}
	return o
}

// ticket is 1 + sum mod total, where total is above 0. A ticket is more likely than another by less than total / 2^256.
func ticket(sum [sha256.Size]byte, total *big.Int) *big.Int {
	t := new(big.Int).SetBytes(sum[:])
	return t.Add(t.Mod(t, total), big.NewInt(1))
}

// holder is the entry that holds ticket t; all says whether the tickets of slashed entries are numbered too.
func (d *Draw) holder(t *big.Int, all bool) int {
	left, tickets := new(big.Int).Set(t), new(big.Int)
	for i, e := range d.Entries {
		if (all || !e.Slashed) && left.Sub(left, tickets.SetInt64(e.Tickets)).Sign() <= 0 {
			return i
		}
	}
	return -1 // there is no such ticket
}
