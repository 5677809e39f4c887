package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"proofofstake/internal/linefile"
)

const block0, block1, record = `{"Index":0,"a":1}`, `{"Index":1,"a":1}`, `{"Index":1,"b":1}`

// files are the names of a chain file and a draws file, and a log.
type files struct {
	chain, draws string
	log          bytes.Buffer
}

// newFiles writes both files in a directory of the test.
func newFiles(t *testing.T, chain, draws string) *files {
	dir := t.TempDir()
	f := &files{chain: dir + "/chain", draws: dir + "/draws"}
	check(t, os.WriteFile(f.chain, []byte(chain), 0o644), os.WriteFile(f.draws, []byte(draws), 0o644))
	return f
}

// check ends the test if there is an error.
func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// want checks what the files contain, and how often the log contains a text.
func (f *files) want(t *testing.T, chain, draws, text string, count int) {
	t.Helper()
	synctest.Wait()
	gotChain, _ := os.ReadFile(f.chain) // nothing if it is displaced
	gotDraws, _ := os.ReadFile(f.draws)
	if logged := f.log.String(); string(gotChain) != chain || string(gotDraws) != draws ||
		strings.Count(logged, text) != count {
		t.Errorf("the files are %q and %q, want %q and %q; the log is %q, want %q %d times",
			gotChain, gotDraws, chain, draws, logged, text, count)
	}
}

// load opens the files and loads the chain, whose blocks are block0 and block1. It logs the error, if any.
func (f *files) load(t *testing.T, ctx context.Context) (*Ledger, error) {
	logger, blocks := log.New(&f.log, "", 0), []string{block0, block1, "end"}
	l, err := Open(f.chain, f.draws, logger)
	check(t, err)
	err = l.Load(ctx, func(line []byte) error {
		if string(line) != blocks[0] {
			return errors.New("not a block")
		}
		blocks = blocks[1:]
		return nil
	})
	if err != nil {
		logger.Print(err)
	}
	return l, err
}

// TestLoad loads files that end in a partial line. It is completed or dropped, unless there is an error.
func TestLoad(t *testing.T) {
	const genesis, complete, start, thesis = block0 + "\n", block0 + "\n" + block1 + "\n", `{"Index":`, "a thesis"
	const dropped, completed, notGenesis = "(9 bytes)", "newline after line ", "chain: line 1: no newline, and not the start"
	const interrupted, corrupt, both = "chain: interrupted", ": its newline is corrupt", block0 + " " + block1
	for _, test := range []struct{ chain, draws, wantChain, wantDraws, message string }{
		{complete, record + "\n", complete, record + "\n", ""},
		{genesis + block1, "", complete, "", completed + "2"},
		{block0, "", genesis, "", completed + "1"},
		{genesis + start, record + "\n", genesis, record + "\n", "chain" + dropped},
		{genesis, record + "\n" + start, genesis, record + "\n", "draws" + dropped},
		{block0[:8] + "\x00", "", "", "", "chain" + dropped},
		{genesis + block1 + "x", start, genesis + block1 + "x", start, "chain: line 2" + corrupt},
		{block0 + "x", "", block0 + "x", "", "chain: line 1" + corrupt},
		{thesis, start, thesis, start, notGenesis},
		{both, "", both, "", notGenesis},
		{"x\n" + start, start, "x\n" + start, start, "chain: line 1: not a block"},
		{genesis, thesis, genesis, thesis, "draws: not a draws file"},
		{complete, start, complete, start, interrupted},
		{genesis + block1, "", genesis + block1, "", interrupted},
		{block0, "", block0, "", interrupted},
	} {
		synctest.Test(t, func(t *testing.T) { // so that nothing can hang
			f := newFiles(t, test.chain, test.draws)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.message == interrupted {
				cancel()
			}
			l, err := f.load(t, ctx)
			l.Close()
			if isError := strings.Contains(test.message, ": ") && !strings.Contains(test.message, dropped); isError != (err != nil) {
				t.Errorf("%q: error %v, want %q", test.chain, err, test.message)
			}
			f.want(t, test.wantChain, test.wantDraws, test.message, 1)
		})
	}
}

// TestSave saves a block while one of the files is displaced by a directory. The record is saved first, and once. The
// ledger retries every second and logs the reason every minute, until the file is restored or Cancel is called.
func TestSave(t *testing.T) {
	for _, test := range []struct{ displaceChain bool; early string; hints int }{{true, record+"\n", 2}, {false, "", 0}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFiles(t, block0+"\n", "")
			l, err := f.load(t, t.Context())
			check(t, err)
			defer l.Close()
			XX
		})
	}
}
