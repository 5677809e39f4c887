// Package ledger keeps the chain file and the draws file, without making anyone wait for a disk. Both are files of
// lines (see package linefile): each block is a line in the first, and the record of its draw a line in the second.
//
// The record is saved before the block. If either fails, the ledger retries once a second, always with the same block.
// While another program has changed the chain file, no block is saved. The draws file may be moved, compressed or
// deleted at any time. If so, the ledger opens the file of that name again, or creates it.
package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"proofofstake/internal/linefile"
)

const (
	retryInterval = time.Second // between two attempts to save a block
	logInterval   = time.Minute // between two warnings about them

	chainStart = `{"Index":0,` // how a chain file begins
	drawsStart = `{"Index":`   // how a draws file begins
)

// Entry is a block to save.
type Entry struct {
	Index  int
	Record []byte // the line of its draw, or nil to save none
	Block  []byte // the line of the block
}

// Ledger owns both files. Its goroutine, run, saves one entry at a time.
type Ledger struct {
	// Saved receives a value each time an entry is durable.
	Saved chan struct{}

	chain, draws         *linefile.File
	chainName, drawsName string
	log                  *log.Logger
	pending              chan Entry
	cancel               context.CancelFunc // makes run return
	done                 chan struct{}      // closed when run has returned
}

// Open opens both files. A file of the empty name takes lines and keeps none. The error names the setting.
func Open(chainName, drawsName string, logger *log.Logger) (*Ledger, error) {
	chain, err := linefile.Open(chainName)
	if err != nil {
		return nil, fmt.Errorf("CHAIN_FILE=%q: %w", chainName, err)
	}
	draws, err := linefile.Open(drawsName)
	if err != nil {
		chain.Close()
		return nil, fmt.Errorf("DRAWS_FILE=%q: %w", drawsName, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Ledger{
		Saved: make(chan struct{}, 1),
		chain: chain, draws: draws, chainName: chainName, drawsName: drawsName, log: logger,
		pending: make(chan Entry, 1), cancel: cancel, done: make(chan struct{}),
	}
	go l.run(ctx)
	return l, nil
}

// Load calls next with each line of the chain file; next returns an error if the line is not the next block. Load
// completes a partial last line of the chain file that is the next block, and drops any other partial last line of both
// files. On any other error, or if ctx is canceled, it leaves the files untouched.
func (l *Ledger) Load(ctx context.Context, next func(line []byte) error) error {
	lines := l.chain.Scanner(linefile.MaxLine)
	for lines.Scan() && ctx.Err() == nil {
		if err := next(lines.Bytes()); err != nil {
			return fmt.Errorf("%s: line %d: %w", l.chainName, lines.Number(), err)
		}
	}
	err := lines.Err()
	if ctx.Err() != nil {
		err = errors.New("interrupted while reading the chain")
	}
	if partial := lines.Partial(); err == nil && len(partial) > 0 {
		err = l.repairChain(partial, lines.Number()+1, next)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", l.chainName, err)
	}
	if l.draws.PartialSize() == 0 {
		return nil
	}
	if !l.draws.HasPrefix(drawsStart) {
		return fmt.Errorf("%s: not a draws file; name another one, or move it away", l.drawsName)
	}
	l.log.Printf(droppedPartial, l.drawsName, l.draws.PartialSize())
	return l.draws.DropPartial()
}

// droppedPartial is the warning about a partial last line that was dropped.
const droppedPartial = "%s: dropping a partial last line (%d bytes); it was never announced"

// repairChain completes or drops the partial last line of the chain file, which is the line with this number.
func (l *Ledger) repairChain(partial []byte, number int, next func(line []byte) error) error {
	if next(partial) == nil {
		l.log.Printf("%s: adding the missing newline after line %d, which is complete", l.chainName, number)
		return l.chain.CompletePartial()
	}
	if next(partial[:len(partial)-1]) == nil { // a complete block plus one byte may have been announced
		return fmt.Errorf("line %d: its newline is corrupt; repair the file", number)
	}
	if number == 1 && (bytes.IndexByte(partial, '}') >= 0 || !l.chain.HasPrefix(chainStart)) {
		return errors.New("line 1: no newline, and not the start of a genesis block; is this a chain file?")
	}
	l.log.Printf(droppedPartial, l.chainName, len(partial))
	return l.chain.DropPartial()
}

// Append saves the line of a block and waits for it. It must not be called after Save.
func (l *Ledger) Append(block []byte) error { return l.chain.Append(block) }

// Save starts to save e and returns immediately. The previous entry must have been saved.
func (l *Ledger) Save(e Entry) { l.pending <- e }

// Cancel gives up on an entry that is not saved yet. It is safe to call Cancel more than once.
func (l *Ledger) Cancel() { l.cancel() }

// Close cancels, waits for the attempt that is under way, and closes the files.
func (l *Ledger) Close() {
	l.cancel()
	<-l.done
	l.chain.Close()
	l.draws.Close()
}

// run saves one entry after another, until ctx is canceled.
func (l *Ledger) run(ctx context.Context) {
	defer close(l.done)
	for {
		select {
		case e := <-l.pending:
			if l.save(ctx, e) {
				l.Saved <- struct{}{}
			}
		case <-ctx.Done():
			return
		}
	}
}

// save saves the record of e and then the block. It reports whether it did so before ctx was canceled.
func (l *Ledger) save(ctx context.Context, e Entry) bool {
	var lastLogged time.Time
	for recorded := e.Record == nil; ; {
		var err error
		if !recorded {
			err = l.saveRecord(e.Record)
		}
		if err == nil {
			recorded = true
			err = l.chain.Append(e.Block)
		}
		if err == nil {
			break
		}
		if now := time.Now(); now.Sub(lastLogged) >= logInterval {
			if recorded && errors.Is(err, linefile.ErrChanged) {
				err = fmt.Errorf("%w; if you moved it, move it back; otherwise restart the server to verify it", err)
			}
			l.log.Printf("cannot save block %d: %v; retrying every second", e.Index, err)
			lastLogged = now
		}
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return false
		}
	}
	if !lastLogged.IsZero() {
		l.log.Printf("saved block %d after all", e.Index)
	}
	return true
}

// saveRecord saves the record of a draw, if need be in a new draws file.
func (l *Ledger) saveRecord(record []byte) error {
	changed := l.draws.Append(record)
	if !errors.Is(changed, linefile.ErrChanged) {
		return changed
	}
	if err := l.draws.Reopen(); err != nil {
		return err
	}
	l.log.Printf("%v; reopened it, new draws go there", changed)
	return l.draws.Append(record)
}
