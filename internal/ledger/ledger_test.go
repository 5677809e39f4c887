package ledger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"proofofstake/internal/draw"
)

const block0, block1 = `{"Index":0,"a":1}`, `{"Index":1,"a":1}`

// hash returns the hash of a block in these tests.
func hash(index int) string { return strings.Repeat(strconv.Itoa(index), 64) }

// drawLine returns the record of a draw, given the index of its block, and which hashes the blocks have. It follows the
// record before, or none.
func drawLine(index, prevBlock, block int, before ...string) string {
	prevDraw := draw.None
	for _, line := range before {
		decoded, _ := draw.Decode([]byte(line[:len(line)-1]))
		prevDraw = decoded.Outcome.Hash
	}
	d := draw.New(hash(prevBlock), prevDraw)
	d.Add(draw.Entry{Name: "alice", Tickets: 1, Note: "72"})
	return string(draw.NewRecord(index, hash(block), d.Outcome(), d)) + "\n"
}

// entry returns an entry whose record is this line.
func entry(index int, record, block string) Entry {
	return Entry{Index: index, Record: []byte(record[:len(record)-1]), Block: []byte(block)}
}

// load writes the files chain and draws in a new working directory. Then it opens them and loads the chain, whose
// blocks are block0 and block1, in a second each. The log is the file log. It also gets what Load returns.
func load(t *testing.T, ctx context.Context, chain, draws string) *Ledger {
	t.Helper()
	t.Chdir(t.TempDir())
	os.WriteFile("chain", []byte(chain), 0o644)
	os.WriteFile("draws", []byte(draws), 0o644)
	logFile, _ := os.Create("log")
	t.Cleanup(func() { logFile.Close() })
	logger, blocks := log.New(logFile, "", 0), []string{block0, block1, "end"}
	l, err := Open("chain", "draws", logger)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Cancel)
	last, err := l.Load(ctx, func(line []byte) (string, error) {
		time.Sleep(time.Second)
		if string(line) != blocks[0] || ctx.Err() != nil {
			return "", errors.New("not a block")
		}
		blocks = blocks[1:]
		return hash(2 - len(blocks)), nil
	})
	if err != nil {
		logger.Print("error: ", err)
	} else {
		logger.Print("last draw: ", last.Index, last.IsAnnounced, " ", last.Outcome.Hash)
	}
	return l
}

// want checks what the files contain by now, and how often a text is in the log. A displaced file counts as empty.
func want(t *testing.T, chain, draws, text string, count int) {
	t.Helper()
	synctest.Wait()
	gotChain, _ := os.ReadFile("chain")
	gotDraws, _ := os.ReadFile("draws")
	logged, _ := os.ReadFile("log")
	if string(gotChain) != chain || string(gotDraws) != draws || strings.Count(string(logged), text) != count {
		t.Fatalf("got %q, %q, %q, want %q, %q, %d times %q", gotChain, gotDraws, logged, chain, draws, count, text)
	}
}

// TestLoad loads files with a draw that belongs to the chain or does not, and with a partial line. That is completed or
// removed, unless there is an error.
func TestLoad(t *testing.T) {
	const genesis, complete, start, thesis = block0 + "\n", block0 + "\n" + block1 + "\n", `{"Index":`, "a thesis"
	const removed, completed = ": removing a partial last line, ", ": adding the missing newline to the last line, "
	const corrupt, foreign = ": its newline is corrupt", ": no newline, and not how such a file begins"
	const draws, notDraws = "error: draws: last line", "error: draws: last line: not a draw record: "
	const interrupted, last = "error: chain: interrupted", "last draw: "
	const otherChain = "error: draws: these are draws of another chain than chain; put back the chain of these draws, or "
	const crash, never = `"{\"Index\":" (9 bytes); a crash while saving`, `"{\"Index\":" (9 bytes); it was never announced`
	record := drawLine(1, 0, 1)
	records, partial := record+drawLine(2, 1, 2, record), strings.TrimSuffix(record, "\n")
	otherRecord := drawLine(1, 0, 5)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, row := range [][]string{ // chain, draws, log, and what both files contain then, unless they are unchanged
		{complete, "", last + "0 false none"}, {complete, otherRecord, last + "1 false "}, // so block 1 has no record
		{complete + start, drawLine(2, 0, 2) + start, otherChain}, {complete + start, drawLine(1, 5, 1) + start, otherChain},
		{"", record, "error: draws: there are draws, but no chain in chain; put back the chain of these draws, or move the"},
		{complete, drawLine(3, 1, 3), "error: draws: the last draw is of block 3, but chain ends with block 1; put back"},
		{genesis + block1, "", "chain" + completed + `"{\"Index\":1,\"a\":1}" (17 bytes); it is complete`, complete, ""},
		{start, "", "chain" + removed + crash, "", ""}, {genesis, start, "draws" + removed + never, genesis, ""},
		{complete, record + start, "draws" + removed + never, complete, record},
		{genesis, record + start, "draws" + removed + crash, genesis, record},           // it was not the head's
		{complete, records + start, "draws" + removed + crash, complete, records},       // nor here
		{complete, start, "draws" + removed + crash, complete, ""},                      // which lost records
		{complete + start, record + start, "draws" + removed + crash, complete, record}, // perhaps of the head
		{complete, otherRecord + start, "draws" + removed + crash, complete, otherRecord},
		{complete, partial, "draws" + completed + `"{\"Index\":1,\"Block\":\"1`, complete, record},
		{complete, strings.TrimSuffix(drawLine(1, 5, 1), "\n"), otherChain},
		{complete, partial + "x", draws + corrupt}, {complete, record + record[:len(record)-1] + "x", draws + corrupt},
		{genesis, genesis, notDraws}, {genesis, thesis, draws + foreign}, {genesis, partial[1:], draws + foreign},
		{genesis, "\x00" + partial, draws + foreign + ": not a draw record: begins with 1 zero byte"},
		{block0[:8] + "\x00", start[:8] + "\x00", "chain" + removed, "", ""},
		{genesis + block1 + "x", start, "error: chain: line 2" + corrupt}, {thesis, start, "error: chain: line 1" + foreign},
		{block0 + " " + block1, "", "error: chain: line 1" + foreign}, {complete, start, interrupted},
		{"x\n" + start, start, "error: chain: line 1: not a block; repair the file, or move it and the draws away to start"},
	} {
		synctest.Test(t, func(t *testing.T) { // so that nothing can hang
			ctx, wanted := t.Context(), append(row, row[:2]...)[3:]
			if row[2] == interrupted {
				ctx = canceled
			}
			load(t, ctx, row[0], row[1]).Close()
			want(t, wanted[0], wanted[1], row[2], 1)
		})
	}
}

// skipOnWindows skips a test in which other programs change the files.
func skipOnWindows(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("on Windows, nobody can change, move or delete a file that is open here")
	}
}

// TestSave saves a block while one of the files is displaced by a directory. The record is saved first, and once. Until
// the file is restored, the ledger retries every second and logs the reason every minute. A chain file whose time alone
// has changed does not delay anything. Close waits for the current attempt.
func TestSave(t *testing.T) {
	skipOnWindows(t)
	const before, after = block0 + "\n", block0 + "\n" + block1 + "\ntwo\nthree\n"
	record1, record2 := drawLine(1, 0, 1), drawLine(2, 1, 2)
	record3 := drawLine(3, 2, 3, record2)
	for name, early := range map[string]string{"chain": record1, "draws": ""} { // the records saved meanwhile
		synctest.Test(t, func(t *testing.T) {
			l := load(t, t.Context(), before, "")
			os.Rename(name, "away")
			os.Mkdir(name, 0o755)
			l.Save(entry(1, record1, block1))
			time.Sleep(60500 * time.Millisecond)
			os.Remove(name)
			os.Rename("away", name)
			want(t, before, early, "cannot save block 1: ", 2)
			want(t, before, early, "move it back; otherwise restart", 2*strings.Count(early, "\n"))
			time.Sleep(499 * time.Millisecond)
			want(t, before, early, "after all", 0)
			time.Sleep(time.Millisecond)
			want(t, before+block1+"\n", record1, "saved block 1 after all", 1)
			<-l.Saved
			os.Remove("draws") // which is allowed
			os.Chtimes("chain", time.Time{}, time.Unix(1, 0))
			l.Save(entry(2, record2, "two"))
			want(t, before+block1+"\ntwo\n", record2, "deleted or moved; reopened it, new draws go there\n", 1)
			<-l.Saved
			os.Chtimes("draws", time.Time{}, time.Unix(1, 0))
			l.Save(entry(3, record3, "three"))
			want(t, after, record2+record3, "its time has changed; reopened it, new draws go there\n", 1)
			<-l.Saved
			l.Save(Entry{Index: 4, Block: []byte("four")})
			l.Close()
			want(t, after+"four\n", record2+record3, "after all", 1)
		})
	}
}

// TestOtherDraws puts another file in the place of the draws file. The next record is saved in it if that carries on
// the draws of this game, or if it is empty. Otherwise, it stays unchanged until it is moved away.
func TestOtherDraws(t *testing.T) {
	skipOnWindows(t)
	const genesis, reopened = block0 + "\n", "; reopened it, new draws go there"
	before := drawLine(1, 0, 1)
	record := drawLine(2, 0, 2, before)
	partial := strings.TrimSuffix(record, "\n")
	for _, row := range [][]string{ // the file, what the log says, and what the file holds then, unless it is refused
		{"", reopened, record}, {record[:40], "removing", record}, {before, reopened, before + record},
		{before[:len(before)-1], "adding", before + record}, {before + "x", "removing", before + record},
		{before + record, reopened, before + record}, {before + partial, "adding", before + record},
		{"a thesis", "draws: last line: no newline, and not "}, {genesis, "draws: last line: not a draw record"},
		{before + drawLine(2, 0, 2, before), "draws: the draw of block 2, the last one, is not the one before this draw; "},
		{drawLine(1, 0, 1) + "x", "draws: the draw of block 1, the last one, is "},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := load(t, t.Context(), genesis, before)
			defer l.Close()
			os.Rename("draws", "away")
			os.WriteFile("draws", []byte(row[0]), 0o644)
			l.Save(entry(2, record, "two"))
			if len(row) == 2 {
				time.Sleep(1500 * time.Millisecond)
				want(t, genesis, row[0], "cannot save block 2: "+row[1], 1)
				os.WriteFile("draws", nil, 0o644)
				time.Sleep(time.Second)
				row = []string{"", reopened, record}
			}
			want(t, genesis+"two\n", row[2], row[1], 1)
		})
	}
}

// TestOpen tries files that cannot be opened. The error names the setting and the absolute path, and says what to do.
func TestOpen(t *testing.T) {
	t.Chdir(t.TempDir())
	path, _ := filepath.Abs("none/a")
	for _, row := range [][4]string{ // both files, how the error begins and ends
		{"none/a", "", `CHAIN_FILE="none/a": open ` + path + ": ", "or set CHAIN_FILE= to keep the chain in memory only"},
		{"", "none/a", `DRAWS_FILE="none/a": open ` + path + ": ", "that you may write, or set DRAWS_FILE= to save no draws"},
		{"a", "a", `DRAWS_FILE="a": `, "already in use by a server; stop that server, or choose another file"},
	} {
		_, err := Open(row[0], row[1], nil)
		if got := fmt.Sprint(err); !strings.HasPrefix(got, row[2]) || !strings.HasSuffix(got, row[3]) {
			t.Errorf("%q: got %s", row, got)
		}
	}
}

// TestProgress loads and verifies a chain in two seconds each, which shows progress on a terminal.
func TestProgress(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0) // it echoes
	if err != nil || runtime.GOOS == "windows" {            // where wine opens it, but a deadline has no effect
		t.Skip("no terminal: ", err)
	}
	defer func(stderr *os.File) { os.Stderr = stderr }(os.Stderr)
	os.Stderr = terminal
	synctest.Test(t, func(t *testing.T) {
		load(t, t.Context(), block0+"\n"+block1+"\n", "").Close()
		Verify("chain", "", io.Discard, io.Discard, func([]byte, *draw.Records) (string, error) {
			time.Sleep(time.Second)
			return "", nil
		})
	})
	terminal.SetReadDeadline(time.Now().Add(10 * time.Second))
	shown := regexp.MustCompile("(?s)loading chain: 50%.*loading chain: 100%.*verifying chain: 50%")
	if !shown.MatchReader(bufio.NewReader(terminal)) {
		t.Error("the terminal does not show progress")
	}
}
