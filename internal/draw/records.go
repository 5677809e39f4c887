package draw

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"proofofstake/internal/console"
	"proofofstake/internal/linefile"
)

// Record is a line of a draws file, in canonical JSON: how the winner of one block was drawn. The record is saved
// before its block. If a crash comes between, the block is never announced, and another draw for the same index
// follows.
type Record struct {
	Index    int         // of the block
	Block    string      // its hash
	Lines    []string    // of the draw
	Ticket   json.Number // that decided, of the redraw if there was one; may pass 64 bits
	Total    json.Number // likewise
	NextSeal string      // of the next draw; after a restart, that draw has a new seal
}

// NewRecord returns the line, without a newline, for the block that won the draw with outcome o. next is the next draw.
func NewRecord(index int, block string, o Outcome, next *Draw) []byte {
	return linefile.Encode(Record{
		Index:    index,
		Block:    block,
		Lines:    strings.Split(strings.TrimSuffix(o.Lines, "\n"), "\n"),
		Ticket:   json.Number(o.Ticket.String()),
		Total:    json.Number(o.Total.String()),
		NextSeal: next.Seal(),
	})
}

// maxRecord is the maximum length of a line of a draws file, in bytes: a million proposals take less than 110 MB.
const maxRecord = 128 << 20

// Records reads a draws file and repeats every draw. Its memory use grows with the longest line, not with the file.
//
// To read all records, use it like a bufio.Scanner: for r.Scan() { … }, then r.Err(). To check them against a chain,
// call CheckBlock for each block, then CheckEnd.
type Records struct {
	Record          // the record that Scan read
	Draw    *Draw   // its draw
	Outcome Outcome // the outcome of Draw, which is the one in Record
	lines   *linefile.Scanner
	err     error

	// For CheckBlock and CheckEnd.
	hasRecord bool     // Record has been read, but not checked
	draws     int      // records of blocks in the chain
	newSeals  []string // lines of draws with another seal than the one published before, as after a restart
	seal      string   // published for the draw of block sealIndex
	sealIndex int
}

// NewRecords returns a Records that reads a draws file from r.
func NewRecords(r io.Reader) *Records { return &Records{lines: linefile.NewScanner(r, maxRecord)} }

// Scan reads the next record and repeats its draw. It returns false at the end of the file and after an error.
func (r *Records) Scan() bool {
	if r.err != nil || !r.lines.Scan() {
		return false
	}
	if err := r.decode(r.lines.Bytes()); err != nil {
		r.fail(r.lines.Number(), err)
	}
	return r.err == nil
}

// decode decodes a record, repeats its draw, and compares the outcomes.
func (r *Records) decode(line []byte) (err error) {
	if err = linefile.Decode(line, &r.Record); err != nil { // a line that lacks a field is not canonical
		return err
	}
	if r.Draw, err = Parse(r.Lines); err != nil {
		return err
	}
	r.Outcome = r.Draw.Outcome()
	switch o := r.Outcome; {
	case o.Winner < 0:
		return errors.New("every entry was slashed, so none can have won")
	case o.Ticket.String() != string(r.Ticket) || o.Total.String() != string(r.Total):
		return fmt.Errorf("its lines give %v, but it says ticket %.40s of %.40s", o, r.Ticket, r.Total)
	case r.Index < 1:
		return errors.New("block 0 is never drawn")
	case len(r.NextSeal) != 64 || strings.Trim(r.NextSeal, "0123456789abcdef") != "":
		return errors.New("NextSeal is not a SHA-256")
	}
	return nil
}

// fail ends the reading with an error about a line. Only the first error counts.
func (r *Records) fail(line int, err error) {
	r.err = cmp.Or(r.err, fmt.Errorf("line %d: %w", line, err))
}

// Err returns the first error, with the number of its line, or nil if there was none.
func (r *Records) Err() error { return cmp.Or(r.err, r.lines.Err()) }

// peek reports whether there is a record to check. It reads the next one if the last one has been checked.
func (r *Records) peek() bool {
	if !r.hasRecord && r.Scan() {
		r.hasRecord = true
		if r.Index == r.sealIndex && r.Draw.Seal() != r.seal {
			r.newSeals = append(r.newSeals, strconv.Itoa(r.lines.Number()))
		}
	}
	return r.hasRecord && r.err == nil
}

var errNotInChain = errors.New("its block is not in the chain, or out of order")

// CheckBlock checks the records with the index of one block of the chain, which has this hash. winner and note are the
// name and note of the entry that won it. Call CheckBlock for each block in order, from the genesis block on, and then
// CheckEnd, which returns the first error.
//
// A block may have no record. If it has several, the last one names its hash, and the others were never announced. If
// none names its hash, they must be the last records of the file.
func (r *Records) CheckBlock(index int, hash, winner, note string) {
	announced := false // whether a record names hash
	unannounced := 0   // the line of the last record that does not, or 0
	for ; r.peek() && r.Index == index; r.hasRecord = false {
		line, entry, named := r.lines.Number(), r.Draw.Entries[r.Outcome.Winner], r.Block == hash
		switch {
		case announced:
			r.fail(line, fmt.Errorf("duplicate record of block %d", index))
		case named != (entry.Name == winner), named && entry.Note != note: // after a restart, names differ
			r.fail(line, fmt.Errorf("it does not match block %d of the chain (hash, winner or BPM)", index))
		case named:
			announced = true
			r.draws++
			r.seal, r.sealIndex = r.NextSeal, index+1
		default:
			unannounced = line
		}
	}
	more := r.peek()
	switch line := r.lines.Number(); {
	case r.Block == hash && r.Index != index: // even if it seemed unannounced, as the last record of the file
		r.fail(line, fmt.Errorf("its hash is that of block %d", index))
	case more && r.Index < index:
		r.fail(line, fmt.Errorf("out of order: it follows the record of block %d", index))
	case more && unannounced > 0 && !announced:
		r.fail(unannounced, errNotInChain)
	}
}

// CheckEnd checks the records after the last block of the chain, the head: draws of the next block, which were never
// announced. It returns the first error of all checks, with the number of its line, or nil if there was none.
func (r *Records) CheckEnd(head int) error {
	for r.peek() && r.Index == head+1 {
		r.hasRecord = false
	}
	if r.peek() {
		r.fail(r.lines.Number(), errNotInChain)
	}
	return r.Err()
}

// Summary returns how many blocks have a draw record, how many blocks up to the head have none, and which lines hold a
// draw with a new seal.
func (r *Records) Summary(head int) string {
	s := console.Plural(r.draws, "draw")
	if without := head - r.draws; without > 0 {
		s += fmt.Sprintf("; %s without a draw record", console.Plural(without, "block"))
	}
	if n := len(r.newSeals); n > 0 {
		where := "lines"
		if n == 1 {
			where = "line"
		}
		where += " " + strings.Join(r.newSeals, ", ")
		s += fmt.Sprintf("; %s, as after a restart (%s)", console.Plural(n, "new seal"), where)
	}
	return s
}
