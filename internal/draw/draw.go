// Package draw implements a sealed lottery that anyone can check with sha256sum and a calculator.
//
// Before there are any entries, the server makes a secret and publishes its seal. At the end the secret is revealed,
// and the hash of the secret and all entries picks the winning ticket. No player can predict it, and the server
// committed to the secret before seeing the entries. README.md says what this does not prove.
//
// Draws form a chain beside the chain of blocks: each one names the block and the draw before it, and its seal covers
// both. So one seal that somebody has noted pins all draws and all blocks before it.
//
// In detail, every hash is the SHA-256 of lines, each followed by a newline, in lower-case hex:
//
//   - The draw lines are the secret, the hash of the block before, the hash of the draw before ("none" if none is
//     recorded), and then, for each entry in order, "<name> <tickets> <note>". An entry that was slashed keeps its line
//     and its tickets, but its note is "slashed". Tickets are numbered consecutively, from 1.
//   - The seal is the hash of the first three lines.
//   - The hash of the draw, D, is the hash of the draw lines. The winning ticket is 1 + D mod the number of tickets.
//   - If that ticket belongs to a slashed entry, there is a redraw among the tickets of all other entries, renumbered
//     from 1 in the same order. The winning ticket is 1 + D' mod their number, where D' is the hash of D.
package draw

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"proofofstake/internal/console"
)

// Draw is one draw of the lottery. It is not safe for concurrent use.
type Draw struct {
	PrevBlock string  // the hash of the block before
	PrevDraw  string  // the hash of the draw before, or None
	Entries   []Entry // in order; only Add, Parse and Slash change them

	secret    string
	total     big.Int // tickets; may pass 64 bits
	slashed   int     // entries
	forfeited big.Int // their tickets
}

// Entry is one entrant's name, tickets and note. Name and note consist of visible ASCII characters, without spaces.
type Entry struct {
	Name    string
	Tickets int64  // at least 1
	Note    string // Slash replaces it by "slashed"
}

const (
	None    = "none"    // stands for the hash of the draw before the first one
	slashed = "slashed" // is the note of a slashed entry, which is not eligible
)

// New returns a draw without entries, with a new secret of 130 random bits, which follows the block and the draw with
// these hashes.
func New(prevBlock, prevDraw string) *Draw {
	return &Draw{PrevBlock: prevBlock, PrevDraw: prevDraw, secret: rand.Text()}
}

// Again returns a draw without entries, with the seal of d. It is used after a round that nobody could win.
func (d *Draw) Again() *Draw {
	return &Draw{PrevBlock: d.PrevBlock, PrevDraw: d.PrevDraw, secret: d.secret}
}

// Secret returns the secret. It must not be revealed before the last entry is added.
func (d *Draw) Secret() string { return d.secret }

// Seal returns the hash of the first three lines, which may be published at any time: head -n 3 lines | sha256sum
func (d *Draw) Seal() string { return hash(d.header()) }

// SealLine returns the line that publishes the seal, given the index of the block that d decides.
func (d *Draw) SealLine(index int) string { return fmt.Sprintf("draw %d seal: %s\n", index, d.Seal()) }

// header returns the first three lines.
func (d *Draw) header() string { return d.secret + "\n" + d.PrevBlock + "\n" + d.PrevDraw + "\n" }

// hash returns the SHA-256 of text in lower-case hex.
func hash(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// isHash reports whether s can be a SHA-256 in lower-case hex.
func isHash(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// Add appends e and returns its first and last ticket.
func (d *Draw) Add(e Entry) (first, last *big.Int) {
	first = new(big.Int).Add(&d.total, big.NewInt(1))
	d.Entries = append(d.Entries, e)
	d.total.Add(&d.total, big.NewInt(e.Tickets))
	return first, new(big.Int).Set(&d.total)
}

// Slash makes entry i unable to win. It must not be slashed already. The cost does not depend on the other entries.
func (d *Draw) Slash(i int) {
	d.Entries[i].Note = slashed
	d.slashed++
	d.forfeited.Add(&d.forfeited, big.NewInt(d.Entries[i].Tickets))
}

// Eligible returns how many entries can win, and how many tickets they hold.
func (d *Draw) Eligible() (entries int, tickets *big.Int) {
	return len(d.Entries) - d.slashed, new(big.Int).Sub(&d.total, &d.forfeited)
}

// Lines returns the draw lines, each followed by a newline.
func (d *Draw) Lines() string {
	b := make([]byte, 0, 256+80*len(d.Entries)) // enough for addresses
	b = append(b, d.header()...)
	for _, e := range d.Entries {
		b = append(append(b, e.Name...), ' ')
		b = append(strconv.AppendInt(b, e.Tickets, 10), ' ')
		b = append(append(b, e.Note...), '\n')
	}
	return string(b)
}

// Parse is the inverse of Lines. It returns an error if a line does not have the form that Lines gives it, or if two
// entries have one name. A secret may be longer than those of New.
func Parse(lines []string) (*Draw, error) {
	switch {
	case len(lines) == 0 || len(lines[0]) < 26 || !isField(lines[0]):
		return nil, errors.New("the first line is not a secret of at least 26 characters")
	case len(lines) < 3 || !isHash(lines[1]) || !isHash(lines[2]) && lines[2] != None:
		return nil, errors.New("the second and third line are not the hashes of the block and of the draw before")
	}
	d := &Draw{PrevBlock: lines[1], PrevDraw: lines[2], Entries: make([]Entry, 0, len(lines)-3), secret: lines[0]}
	names := make(map[string]bool, len(lines)-3)
	for i, line := range lines[3:] {
		name, rest, _ := strings.Cut(line, " ")
		tickets, note, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(tickets, 10, 64)
		if err != nil || tickets[0] < '1' || !isField(name) || !isField(note) { // no sign and no leading zero
			return nil, fmt.Errorf("%s is not an entry (address, stake, BPM)", console.Quote(line, 100))
		}
		if names[name] = true; len(names) == i {
			return nil, fmt.Errorf("%s has two entries", console.Quote(name, 100))
		}
		d.Entries = append(d.Entries, Entry{Name: name, Tickets: n, Note: note})
		d.total.Add(&d.total, big.NewInt(n)) // not with Add, whose results would take a third of the time of verify
		if note == slashed {
			d.Slash(i)
		}
	}
	return d, nil
}

// isField reports whether s consists of visible ASCII characters. Lines of such fields can be read in one way only.
func isField(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

// Outcome is the result of a draw.
type Outcome struct {
	Winner        int      // the index of the entry that won, or -1 if no entry could win
	Ticket, Total *big.Int // of the redraw, if there was one; nil if no entry could win
	Lines         string   // the draw lines
	Hash          string   // the hash of the draw
	slashed       string   // the first draw and "redraw: ", if there was a redraw
}

// String returns "ticket <t> of <total>", or "ticket <t> of <total> was slashed; redraw: ticket <t> of <total>".
func (o Outcome) String() string {
	return fmt.Sprintf("%sticket %d of %d", o.slashed, o.Ticket, o.Total)
}

// Outcome makes the draw. The result is the same on every call, until an entry is added or slashed. The cost depends
// on the number of entries, not on how many tickets they hold or how many were slashed.
func (d *Draw) Outcome() Outcome {
	o := Outcome{Winner: -1, Lines: d.Lines()}
	_, eligible := d.Eligible()
	if eligible.Sign() == 0 {
		return o
	}
	o.Hash, o.Total = hash(o.Lines), new(big.Int).Set(&d.total)
	o.Ticket = ticket(o.Hash, o.Total)
	if o.Winner = d.holder(o.Ticket, true); d.Entries[o.Winner].Note == slashed {
		o.slashed = fmt.Sprintf("ticket %d of %d was slashed; redraw: ", o.Ticket, o.Total)
		o.Ticket, o.Total = ticket(hash(o.Hash+"\n"), eligible), eligible
		o.Winner = d.holder(o.Ticket, false)
	}
	return o
}

// ticket returns 1 + hash mod total. total is above 0. The chances of two tickets differ by at most 1 / 2^256.
func ticket(hash string, total *big.Int) *big.Int {
	t, _ := new(big.Int).SetString(hash, 16)
	return t.Add(t.Mod(t, total), big.NewInt(1))
}

// holder returns the index of the entry that holds ticket t, or -1 if there is no such ticket. If all is false, the
// tickets of slashed entries are not numbered.
func (d *Draw) holder(t *big.Int, all bool) int {
	left, tickets := new(big.Int).Set(t), new(big.Int)
	for i, e := range d.Entries {
		if (all || e.Note != slashed) && left.Sub(left, tickets.SetInt64(e.Tickets)).Sign() <= 0 {
			return i
		}
	}
	return -1
}
