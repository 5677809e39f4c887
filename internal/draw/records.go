package draw

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"proofofstake/internal/console"
	"proofofstake/internal/linefile"
)

// Record is a line of a draws file, in canonical JSON: how the winner of one block was drawn. The record is saved
// before its block. If a crash comes between, the block is never announced. The record stays and the next one names it
// as the draw before, but it counts for nothing.
type Record struct {
	Index         int         // of the block
	Block         string      // its hash
	Lines         []string    // of the draw
	Ticket, Total json.Number // of the redraw, if there was one; may pass 64 bits
	NextSeal      string      // of the next draw; no hash covers it, and a crash may lose its secret
}

// NewRecord returns the line, without a newline, for the block that won the draw with outcome o. next is the next draw.
func NewRecord(index int, block string, o Outcome, next *Draw) []byte {
	return linefile.Encode(Record{
		Index: index, Block: block, Lines: strings.Split(strings.TrimSuffix(o.Lines, "\n"), "\n"),
		Ticket: json.Number(o.Ticket.String()), Total: json.Number(o.Total.String()), NextSeal: next.Seal(),
	})
}

// MaxRecord is the maximum length of a line of a draws file, in bytes. A million proposals take less than 110 MB.
const MaxRecord = 128 << 20

// Decoded is a record whose draw has been repeated, with the same outcome.
type Decoded struct {
	Record
	Draw    *Draw
	Outcome Outcome
}

// Decode decodes a record and repeats its draw.
func Decode(line []byte) (*Decoded, error) {
	d := new(Decoded)
	err := linefile.Decode(line, &d.Record) // a line that lacks a field is not canonical
	if err == nil {
		d.Draw, err = Parse(d.Lines)
	}
	if err != nil {
		return nil, err
	}
	switch d.Outcome = d.Draw.Outcome(); {
	case d.Outcome.Winner < 0:
		return nil, errors.New("every entry was slashed, so none can have won")
	case d.Outcome.Ticket.String() != string(d.Ticket) || d.Outcome.Total.String() != string(d.Total):
		return nil, fmt.Errorf("its lines give %v, but it says ticket %.40s of %.40s", d.Outcome, d.Ticket, d.Total)
	case d.Index < 1 || !isHash(d.Block) || !isHash(d.NextSeal):
		return nil, errors.New("its Index is below 1, or its Block or NextSeal is not a SHA-256")
	}
	return d, nil
}

// Records checks the records of a draws file against a chain: call CheckBlock for each block, then CheckEnd. Its memory
// use grows with the longest line, not with the file.
type Records struct {
	lines *linefile.Scanner
	next  *Decoded // the first record that is not checked yet; nil at the end of the file and after an error
	err   error    // the first one, with the number of its line
	first string   // the hash of the draw before the first record, or None

	head        string   // the hash of the last block
	index       int      // its index
	published   string   // the first known seal of the draw after that block, or empty
	draws       int      // records of blocks in the chain
	newSeals    int      // draws with another seal than the one published before, as after a restart
	unannounced []string // records of other blocks, such as "line 4"
	opened      string   // what to compare with the seal of the last record, or empty if there is none
}

// NewRecords returns a Records that reads a draws file from r.
func NewRecords(r io.Reader) *Records {
	records := &Records{lines: linefile.NewScanner(r, MaxRecord), first: None, index: -1}
	records.read()
	return records
}

// read reads the next record, and checks that it names the draw before it.
func (r *Records) read() {
	before := r.next
	if r.err != nil || !r.lines.Scan() {
		r.next, r.err = nil, cmp.Or(r.err, r.lines.Err())
		return
	}
	d, err := Decode(r.lines.Bytes())
	switch r.next = d; {
	case err != nil:
		r.fail("%w", err)
	case before == nil:
		r.first = d.Draw.PrevDraw
	case d.Draw.PrevDraw != before.Outcome.Hash:
		r.fail("it does not name the draw before it")
	}
}

// fail ends the reading with an error about the record that was read last.
func (r *Records) fail(format string, args ...any) {
	r.err = fmt.Errorf("line %d: %w", r.lines.Number(), fmt.Errorf(format, args...))
	r.next = nil
}

// CheckBlock checks the records with the index of a block, given the block's hash, and the name and note of the entry
// that won it. The blocks of a chain must be checked in order, from the genesis block on. A block may have no record.
// Records may name another block, which was never announced. CheckEnd returns the first error.
func (r *Records) CheckBlock(index int, hash, winner, note string) {
	published := "" // the seal in the record of this block
	for ; r.next != nil && r.next.Index <= index; r.read() {
		d := r.next
		won, isBlock := d.Draw.Entries[d.Outcome.Winner], d.Block == hash
		switch {
		case d.Index < index || published != "":
			r.fail("out of order: it follows the record of block %d", index)
		case d.Draw.PrevBlock != r.head:
			r.fail("it does not name the block before it, block %d", index-1)
		case isBlock != (won.Name == winner), isBlock && won.Note != note: // names are new after a restart
			r.fail("it does not match block %d of the chain (hash, winner or BPM)", index)
		case isBlock:
			r.draws++
			published = d.NextSeal
		default:
			r.unannounced = append(r.unannounced, fmt.Sprint("line ", r.lines.Number()))
		}
		if r.published = cmp.Or(r.published, d.Draw.Seal()); r.published != d.Draw.Seal() {
			r.newSeals++
		}
		r.opened = fmt.Sprintf("if you noted this seal, no block or draw before draw %d has changed since:\n%s",
			d.Index, d.Draw.SealLine(d.Index))
	}
	r.head, r.index, r.published = hash, index, published
}

// CheckEnd checks the records after the last block of the chain, the head. They are draws of the next block, which were
// not announced. It returns the first error of all checks, with the number of its line, or nil if there was none.
func (r *Records) CheckEnd() error {
	r.CheckBlock(r.index+1, "", "", "") // a block that no record can name
	if r.index--; r.next != nil {
		r.fail("its block is not in the chain")
	}
	return r.err
}

// Summary returns how many draws were checked, whatever is special about them, and the seal that the last draw opens.
func (r *Records) Summary() string {
	s := console.Plural(r.draws, "draw")
	if without := r.index - r.draws; without > 0 {
		s += fmt.Sprintf("; %s without a draw record", console.Plural(without, "block"))
	}
	if n := len(r.unannounced); n > 0 {
		s += fmt.Sprintf("; %s not announced (%s)", console.Plural(n, "draw"), strings.Join(r.unannounced, ", "))
	}
	if r.newSeals > 0 {
		s += fmt.Sprintf("; %s, as after a restart", console.Plural(r.newSeals, "new seal"))
	}
	if r.first != None {
		s += "; the file continues from draw\n  " + r.first
	}
	return s + "\n" + r.opened
}
