// Package ledger saves blocks in the chain file and their draws in the draws file, without making anyone wait for a
// disk. Both are files of lines (see package linefile). A line of the first is a block, a line of the second a record.
//
// The record is saved before the block. If either fails, the ledger retries once a second, always with the same block.
// Once another program has changed the chain file, no block is saved until that is undone. The draws file may be moved,
// compressed or deleted at any time. If so, the ledger opens the file of that name again, or creates it.
//
// Both files have one rule for a partial last line: if it is the next line, it lacks only its newline, and is
// completed. Otherwise it is removed, but only from a file that is known to be ours.
package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"proofofstake/internal/console"
	"proofofstake/internal/draw"
	"proofofstake/internal/linefile"
)

const (
	retryInterval = time.Second // between two attempts to save a block
	logInterval   = time.Minute // between two warnings about failed attempts
)

// Entry is a block to save.
type Entry struct {
	Index  int
	Record []byte // the line of its draw, or nil to save none
	Block  []byte // the line of the block
}

// Ledger owns both files. It saves one entry at a time, in a goroutine.
type Ledger struct {
	// Saved receives a value each time an entry is durable.
	Saved chan struct{}

	chain, draws         *linefile.File
	chainName, drawsName string
	log                  *log.Logger
	saving               sync.WaitGroup  // for the goroutine
	ctx                  context.Context // ends the retries of the goroutine
	cancel               context.CancelFunc
}

// Open opens both files. A file with an empty name accepts lines but does not save them. The error names the setting.
func Open(chainName, drawsName string, logger *log.Logger) (*Ledger, error) {
	chain, err := open("CHAIN_FILE", chainName, "keep the chain in memory only")
	if err != nil {
		return nil, err
	}
	draws, err := open("DRAWS_FILE", drawsName, "save no draws")
	if err != nil {
		chain.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Ledger{
		Saved: make(chan struct{}, 1),
		chain: chain, draws: draws, chainName: chainName, drawsName: drawsName, log: logger, ctx: ctx, cancel: cancel,
	}, nil
}

// open opens the file in a setting. Its error has the absolute path, and says what to do, and what an empty value does.
func open(setting, name, ifEmpty string) (*linefile.File, error) {
	path, err := filepath.Abs(name)
	if name == "" || err != nil {
		path = name
	}
	file, err := linefile.Open(path)
	advice := fmt.Sprintf("choose a file on a local disk that you may write, or set %s= to %s", setting, ifEmpty)
	if errors.Is(err, linefile.ErrInUse) {
		advice = "stop that server, or choose another file"
	}
	if err != nil {
		err = fmt.Errorf("%s=%q: %w; %s", setting, name, err, advice)
	}
	return file, err
}

// LastDraw is the last draw in the draws file. If no draw is recorded, its index is 0 and its hash is [draw.None].
type LastDraw struct {
	*draw.Decoded
	IsAnnounced  bool // its block is in the chain
	belongs      bool // the block before is in the chain, or no draw is recorded
	lacksNewline bool // its line is the partial line
}

// Load calls next with each line of the chain file. next returns the hash of the block, or an error if the line is not
// the next block. Load returns the last draw. It completes or removes a partial line of either file. When ctx is
// canceled, a file is invalid, or the last draw does not belong to the chain, Load returns an error and leaves the
// files unchanged.
func (l *Ledger) Load(ctx context.Context, next func(line []byte) (hash string, err error)) (*LastDraw, error) {
	last, err := lastDraw(l.draws)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.drawsName, err)
	}
	blocks := 0
	lacksNewline, err := l.readChain(ctx, func(line []byte) error {
		hash, err := next(line)
		if err == nil {
			last.compare(blocks, hash)
			blocks++
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.chainName, err)
	}
	if err := last.check(blocks, l.chainName); err != nil {
		return nil, fmt.Errorf("%s: %w", l.drawsName, err)
	}
	// A block is saved after its record. So if the head is the block of the last record, a partial record has no block.
	isHead := last.Index == blocks-1 && (last.Index == 0 || last.IsAnnounced) && l.chain.PartialSize() == 0
	if err = l.endLine(l.chain, l.chainName, lacksNewline, false); err == nil {
		err = l.endLine(l.draws, l.drawsName, last.lacksNewline, isHead)
	}
	return last, err
}

// lastDraw decodes the last line of a draws file. It fails if that is neither a record nor the start of the first one.
func lastDraw(file *linefile.File) (*LastDraw, error) {
	last := &LastDraw{Decoded: &draw.Decoded{Outcome: draw.Outcome{Hash: draw.None}}, belongs: true}
	decode := func(line []byte) error {
		decoded, err := draw.Decode(line)
		if err != nil {
			return fmt.Errorf("not a draw record: %w", err)
		}
		*last = LastDraw{Decoded: decoded}
		return nil
	}
	line, partial, err := file.End(draw.MaxRecord)
	if err == nil && line != nil {
		err = decode(line)
	}
	if err == nil {
		last.lacksNewline, err = isNext(partial, line == nil, `{"Index":1,"Block":"`, decode)
	}
	if err != nil {
		err = fmt.Errorf("last line: %w; repair the file, or move it away and leave the chain", err)
	}
	return last, err
}

// isNext reports whether a partial line is the next line, which then lacks only its newline. It fails if the line must
// not be removed. A first line must begin as start does, where 1 means any number from 1 up. Zeros at its end, as after
// a power cut, are ignored.
func isNext(partial []byte, isFirst bool, start string, next func(line []byte) error) (bool, error) {
	if len(partial) == 0 {
		return false, nil
	}
	begin := regexp.MustCompile("[1-9][0-9]*").ReplaceAllString(string(partial[:min(len(partial), 40)]), "1")
	begin = strings.TrimRight(begin[:min(len(begin), len(start))], "\x00")
	err := next(partial)
	switch {
	case err == nil:
		return true, nil
	case next(partial[:len(partial)-1]) == nil: // a complete line plus one byte may have been announced
		return false, errors.New("its newline is corrupt")
	case isFirst && (bytes.IndexByte(partial, '}') >= 0 || !strings.HasPrefix(start, begin)):
		return false, fmt.Errorf("no newline, and not how such a file begins: %w", err)
	}
	return false, nil
}

// compare compares the draw with the block of the chain that has this index and this hash.
func (d *LastDraw) compare(index int, hash string) {
	switch index {
	case d.Index - 1:
		d.belongs = hash == d.Draw.PrevBlock
	case d.Index:
		d.IsAnnounced = hash == d.Block
	}
}

// check returns an error if the draw does not belong to the chain, which has this number of blocks.
func (d *LastDraw) check(blocks int, chainName string) error {
	const advice = "put back the chain of these draws, or move the draws away"
	switch {
	case d.belongs:
		return nil
	case blocks == 0:
		return fmt.Errorf("there are draws, but no chain in %s; %s", chainName, advice)
	case d.Index > blocks:
		return fmt.Errorf("the last draw is of block %d, but %s ends with block %d; %s", d.Index, chainName, blocks-1, advice)
	}
	return fmt.Errorf("these are draws of another chain than %s; %s", chainName, advice)
}

// readLines calls add with each line of a chain file, until ctx is canceled. The error names the line.
func readLines(ctx context.Context, lines *linefile.Scanner, p *console.Progress, add func(line []byte) error) error {
	defer p.Done()
	for lines.Scan() && ctx.Err() == nil {
		if err := add(lines.Bytes()); err != nil {
			return fmt.Errorf("line %d: %w", lines.Number(), err)
		}
		p.Add(len(lines.Bytes()) + 1)
	}
	return lines.Err()
}

// readChain calls add with each line of the chain file. It reports whether the last line is a block that only lacks its
// newline.
func (l *Ledger) readChain(ctx context.Context, add func(line []byte) error) (lacksNewline bool, err error) {
	lines := l.chain.Scanner(linefile.MaxLine)
	err = readLines(ctx, lines, console.NewProgress(os.Stderr, "loading "+l.chainName, l.chain.Size()), add)
	if ctx.Err() != nil {
		return false, errors.New("interrupted while reading the chain")
	}
	if err == nil {
		if lacksNewline, err = isNext(lines.Partial(), lines.Number() == 0, `{"Index":0,`, add); err != nil {
			err = fmt.Errorf("line %d: %w", lines.Number()+1, err)
		}
	}
	if err != nil {
		err = fmt.Errorf("%w; repair the file, or move it and the draws away to start a new chain", err)
	}
	return lacksNewline, err
}

// endLine completes the partial line of a file, if there is one that lacks only its newline, or else removes it.
func (l *Ledger) endLine(file *linefile.File, name string, lacksNewline, neverAnnounced bool) error {
	_, partial, err := file.End(draw.MaxRecord)
	if err != nil || len(partial) == 0 {
		return err
	}
	remark := "a crash while saving leaves such a line; if an edit did, put both files back"
	if neverAnnounced {
		remark = "it was never announced"
	}
	text, size := console.Quote(string(partial[:min(len(partial), 60)]), 60), console.Plural(len(partial), "byte")
	if lacksNewline {
		l.log.Printf("%s: adding the missing newline to the last line, %s (%s); it is complete", name, text, size)
		return file.CompletePartial()
	}
	l.log.Printf("%s: removing a partial last line, %s (%s); %s", name, text, size, remark)
	return file.DropPartial()
}

// Verify checks a chain file and, unless drawsName is empty, its draws file. They may be in use. next does as in Load,
// and also calls CheckBlock. Verify shows on stdout what is right, and on stderr that it ignores partial lines.
func Verify(chainName, drawsName string, stdout, stderr io.Writer,
	next func(line []byte, records *draw.Records) (hash string, err error)) error {
	draws, chain, err := linefile.OpenSnapshots(cmp.Or(drawsName, os.DevNull), chainName)
	if err != nil {
		return err
	}
	defer chain.Close()
	defer draws.Close()
	lines, records, head := linefile.NewScanner(chain, linefile.MaxLine), draw.NewRecords(draws), ""
	progress := console.NewProgress(os.Stderr, "verifying "+chainName, chain.Size())
	err = readLines(context.Background(), lines, progress, func(line []byte) (err error) {
		head, err = next(line, records)
		return err
	})
	if err == nil && head == "" {
		err = errors.New("no genesis block")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", chainName, err)
	}
	for i, file := range []*linefile.Snapshot{chain, draws} {
		if file.HasPartial() {
			fmt.Fprintf(stderr, "%s: ignoring a partial last line\n", []string{chainName, drawsName}[i])
		}
	}
	fmt.Fprintf(stdout, "ok: %s, head %s\n", console.Plural(lines.Number(), "block"), head)
	if err := records.CheckEnd(); err != nil {
		return fmt.Errorf("%s: %w", drawsName, err)
	}
	if drawsName != "" {
		fmt.Fprintf(stdout, "ok: %s", records.Summary())
	}
	return nil
}

// Append saves the line of a block and waits for it. It must not be called after Save.
func (l *Ledger) Append(block []byte) error { return l.chain.Append(block) }

// Save starts to save e and returns immediately. The previous entry must have been saved.
func (l *Ledger) Save(e Entry) {
	l.saving.Go(func() {
		if l.save(e) {
			l.Saved <- struct{}{}
		}
	})
}

// Cancel ends the retries for an entry that is not saved yet. It is safe to call Cancel more than once.
func (l *Ledger) Cancel() { l.cancel() }

// Close ends the retries, waits for the current attempt, and closes the files.
func (l *Ledger) Close() {
	l.cancel()
	l.saving.Wait()
	path, _ := filepath.EvalSymlinks(l.chainName)
	if info, err := os.Stat(path); err == nil && info.Size() == 0 && l.chain.Size() == 0 {
		os.Remove(path) // Open created it for a start that was refused
	}
	l.chain.Close()
	l.draws.Close()
}

// save saves the record of e and then the block. It returns false if Cancel was called before an attempt succeeded.
func (l *Ledger) save(e Entry) bool {
	var lastLogged time.Time
	for {
		var err error
		if e.Record != nil {
			err = l.saveRecord(e.Record)
		}
		if err == nil {
			e.Record = nil // so that a retry does not save it again
			err = l.chain.Append(e.Block)
		}
		if err == nil {
			if !lastLogged.IsZero() {
				l.log.Printf("saved block %d after all", e.Index)
			}
			return true
		}
		if now := time.Now(); now.Sub(lastLogged) >= logInterval {
			if e.Record == nil && errors.Is(err, linefile.ErrChanged) {
				err = fmt.Errorf("%w; if you moved it, move it back; otherwise restart the server to verify it", err)
			}
			l.log.Printf("cannot save block %d: %v; retrying every second", e.Index, err)
			lastLogged = now
		}
		select {
		case <-time.After(retryInterval):
		case <-l.ctx.Done():
			return false
		}
	}
}

// saveRecord saves the record of a draw, if need be in another draws file of that name. If that is one of another game,
// it stays unchanged. The record may be in it already: the file may have been moved during the sync, and back.
func (l *Ledger) saveRecord(record []byte) error {
	changed := l.draws.Append(record)
	if !errors.Is(changed, linefile.ErrChanged) {
		return changed
	}
	draws, err := l.draws.Reopen()
	if err != nil {
		return err
	}
	last, err := lastDraw(draws)
	isSaved := bytes.Equal(linefile.Encode(last.Record), record)
	namesLast := bytes.Contains(record, []byte(last.Outcome.Hash)) // as the draw before
	if err == nil && last.Index > 0 && !isSaved && !namesLast {
		err = fmt.Errorf("the draw of block %d, the last one, is not the one before this draw; put back the draws of this "+
			"game, or move the file away", last.Index)
	}
	if err == nil {
		err = l.endLine(draws, l.drawsName, last.lacksNewline, false)
	}
	if err != nil {
		draws.Close()
		return fmt.Errorf("%s: %w", l.drawsName, err)
	}
	l.draws = draws
	l.log.Printf("%v; reopened it, new draws go there", changed)
	if isSaved {
		return nil
	}
	return l.draws.Append(record)
}
