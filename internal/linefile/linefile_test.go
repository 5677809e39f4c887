package linefile

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if got, want := fmt.Sprint(got), fmt.Sprint(want); got != want {
		t.Errorf("%s:\n%.300s\nwant:\n%.300s", what, got, want)
	}
}

var errDisk = errors.New("the disk is broken") // what a testDisk fails with

// testDisk is a file on which calls fail if a test says so.
type testDisk struct {
	*os.File
	full      int64  // it takes no byte from this offset on; 0: it takes all
	broken    string // which of "sync", "cut" and "stat" fail
	meanwhile func() // happens while it is synced
	synced    string // what it held at the last sync
	reads     int64  // in bytes
}

// openTest makes a file of that content and opens it on a disk on which nothing fails yet.
func openTest(t *testing.T, content string) (*testDisk, *File) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "lines")
	err := edit(name, content, 1)
	file, fault := openLocked(name)
	d := &testDisk{File: file, synced: content, meanwhile: func() {}}
	f, lost := open(name, d)
	if err := errors.Join(err, fault, lost); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return d, f
}

// content returns what the open file holds, wherever it is by now.
func (d *testDisk) content() string {
	data, _ := io.ReadAll(io.NewSectionReader(d.File, 0, 1<<20))
	return string(data)
}

// fault is the error of a call.
func (d *testDisk) fault(call string) error {
	if strings.Contains(d.broken, call) {
		return errDisk
	}
	return nil
}

func (d *testDisk) ReadAt(p []byte, at int64) (int, error) {
	d.reads += int64(len(p))
	return d.File.ReadAt(p, at)
}

func (d *testDisk) WriteAt(p []byte, at int64) (int, error) {
	if d.full == 0 || at+int64(len(p)) <= d.full {
		return d.File.WriteAt(p, at)
	}
	n, _ := d.File.WriteAt(p[:max(0, d.full-at)], at)
	return n, errDisk
}

func (d *testDisk) Truncate(size int64) error {
	if d.fault("cut") != nil {
		return errDisk
	}
	return d.File.Truncate(size)
}

func (d *testDisk) Sync() error {
	if d.meanwhile(); d.fault("sync") == nil {
		d.synced = d.content()
	}
	return d.fault("sync")
}

func (d *testDisk) Stat() (os.FileInfo, error) {
	if d.fault("stat") != nil {
		return nil, errDisk
	}
	return d.File.Stat()
}

// edit writes a file as others do, at the second when, which is long ago.
func edit(name, content string, when int64) error {
	return errors.Join(os.WriteFile(name, []byte(content), 0o644), os.Chtimes(name, time.Time{}, time.Unix(when, 0)))
}

// read returns the whole lines, "|", and the tail or the error; it checks the numbers.
func read(l *Scanner) string {
	all := ""
	for n := 1; l.Scan(); n++ {
		if all += l.Text() + "\n"; l.Number() != n {
			all += fmt.Sprintf("this line has number %d\n", l.Number())
		}
	}
	if l.Scan() || l.Err() != nil {
		return fmt.Sprint(all, "|", l.Err())
	}
	return all + "|" + string(l.Partial())
}

// look says what the file of d and f is like.
func look(d *testDisk, f *File) string {
	return fmt.Sprintf("%q, synced %q, read %q, tail size %d", d.content(), d.synced, read(f.Scanner(5)), f.PartialSize())
}

// good is what look says of a file of such lines and tail, which are synced.
func good(whole, tail string) string {
	return fmt.Sprintf("%q, synced %[1]q, read %q, tail size %d", whole+tail, whole+"|"+tail, len(tail))
}

// do does the steps in turn: A appends a line, "new"; K keeps the tail; C cuts it off.
func do(f *File, steps string) (err error) {
	does := map[rune]func() error{'A': func() error { return f.Append([]byte("new")) }, 'K': f.CompletePartial, 'C': f.DropPartial}
	for _, step := range steps {
		err = errors.Join(err, does[step]())
	}
	return err
}

// A file cut at any byte, as by a crash, has whole lines and a tail, and goes on as its owner decides.
func TestCutAnywhere(t *testing.T) {
	const content = "one\n\nthree\nfour\n"
	for at := range len(content) + 1 {
		whole := content[:strings.LastIndex(content[:at], "\n")+1]
		tail, kept := content[len(whole):at], content[:at]
		if tail != "" {
			kept += "\n"
		}
		for steps, want := range map[string]string{
			"A": whole + "new\n", "K": kept, "C": whole, "KA": kept + "new\n", "CKA": whole + "new\n", "AKCA": whole + "new\nnew\n",
		} {
			d, f := openTest(t, content[:at])
			same(t, "cut", look(d, f), good(whole, tail))
			same(t, fmt.Sprintf("cut at %d, then %s", at, steps), do(f, steps), nil)
			same(t, fmt.Sprintf("cut at %d, then %s", at, steps), look(d, f), good(want, ""))
		}
	}
}

// Whatever fails, at whatever byte, it is said, and the file is as before: at the latest when it can be. The remains of a
// line that could not be kept are a tail to be cut, not to be kept.
func TestBrokenDisk(t *testing.T) {
	for _, broken := range []string{"", "sync", "cut", "stat", "sync cut", "sync stat", "cut stat", "sync cut stat"} {
		for full := int64(4); full <= 8; full++ {
			for _, c := range []struct{ whole, tail, step, mended, after string }{
				{"one\n", "", "A", "A", "one\nnew\n"},
				{"one\n", "", "A", "KC", "one\n"},
				{"one\n", "new", "K", "K", "one\nnew\n"},
			} {
				d, f := openTest(t, c.whole+c.tail)
				d.full, d.broken = full, broken
				what := fmt.Sprintf("%s of %q, full at %d, broken %s", c.step, c.whole+c.tail, full, broken)
				seen, err := d.fault("stat") == nil, do(f, c.step)
				same(t, what, err == nil, full == 8 && seen && d.fault("sync") == nil)
				if err == nil {
					continue
				}
				same(t, what, read(f.Scanner(5)), c.whole+"|"+c.tail)
				if d.fault("cut") == nil {
					same(t, what, d.content(), c.whole+c.tail)
				}
				if seen {
					same(t, what, f.PartialSize(), len(d.content())-len(c.whole))
				}
				if seen || c.mended != "KC" { // else nobody knows of the remains
					d.full, d.broken = 0, ""
					same(t, what+", mended", do(f, c.mended), nil)
					same(t, what+", mended", look(d, f), good(c.after, ""))
				}
			}
		}
	}
}

// A failure loses nothing: neither a tail that could not be cut, nor the sight of what others did meanwhile.
func TestNothingLost(t *testing.T) {
	d, f := openTest(t, "one\ntail")
	d.broken = "cut"
	same(t, "cut, add, keep", fmt.Sprint(f.DropPartial(), do(f, "A"), f.CompletePartial()), fmt.Sprint(errDisk, errDisk, nil))
	same(t, "a tail that could not be cut", look(d, f), good("one\ntail\n", ""))
	d.full, d.broken = 12, "cut stat" // nobody sees what is left
	do(f, "A")
	d.broken = ""
	os.Truncate(d.Name(), 6)
	same(t, "somebody else has cut whole lines", errors.Is(do(f, "A"), ErrChanged), true)
	same(t, "and then the file holds", d.content(), "one\nta")
	d, f = openTest(t, "")
	d.meanwhile = func() { edit(f.name, "two\n", 2) }
	same(t, "add a line, which is edited while it is synced", do(f, "A"), nil)
	same(t, "add another", errors.Is(do(f, "A"), ErrChanged), true)
}

// A file that somebody else has changed is not written to until it is as it was.
func TestChangedByOthers(t *testing.T) {
	move := func(name string) error { return os.Rename(name, name+".old") }
	for what, change := range map[string]func(name string) error{
		"it is gone":             move,
		"it is another file now": func(name string) error { return errors.Join(move(name), edit(name, "8 bytes\n", 2)) },
		"it was edited":          func(name string) error { return edit(name, "one\nmine", 2) },
		"it has 12 bytes now":    func(name string) error { return edit(name, "one\ntailmine", 2) },
		"it has 4 bytes now":     func(name string) error { return os.Truncate(name, 4) },
	} {
		for _, c := range []struct{ before, step string }{{"", "K"}, {"", "C"}, {"", "A"}, {"A", "A"}} {
			d, f := openTest(t, "one\ntail")
			same(t, what, errors.Join(do(f, c.before), change(f.name)), nil) // either way it has 8 bytes before the change
			content, err := d.content(), do(f, c.step)
			same(t, what, err, f.name+": "+ErrChanged.Error()+": "+what)
			same(t, what, errors.Is(err, ErrChanged), true)
			same(t, what, d.content(), content)
			if os.Rename(f.name+".old", f.name) == nil {
				same(t, c.step+" after it was moved back", do(f, c.step), nil)
			}
		}
	}
}

// A file that somebody else has changed can be given up for the one of that name. While that cannot be opened, nothing is
// written.
func TestReopen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lines")
	f, err := Open(name)
	same(t, "there is a folder of that name", errors.Join(err, do(f, "A"), os.Rename(name, name+".old"), os.Mkdir(name, 0o755)), nil)
	for range 2 {
		same(t, "it is changed", errors.Is(do(f, "A"), ErrChanged), true)
		same(t, "a folder cannot be opened", f.Reopen() != nil, true)
	}
	same(t, "it is back", errors.Join(os.Remove(name), os.Rename(name+".old", name)), nil)
	same(t, "but not opened", do(f, "A"), name+": "+ErrChanged.Error()+": it could not be opened again")
	for _, want := range []string{"new\nnew\n", "new\n"} { // what was there, and a new one
		same(t, "it is opened", errors.Join(f.Reopen(), do(f, "A")), nil)
		_, err := Open(name)
		same(t, "it is locked", errors.Is(err, ErrInUse), true)
		data, _ := os.ReadFile(name)
		same(t, "it holds", string(data), want)
		os.Remove(name)
	}
	f.Close()
}

// A file that is opened as it is may be in use, and ends where it ended then.
func TestOpenAsItIs(t *testing.T) {
	_, f := openTest(t, "one\ntail")
	r, err := OpenSnapshot(f.name)
	same(t, "open", errors.Join(err, edit(f.name, "one\ntail and more", 2)), nil)
	data, err := io.ReadAll(r)
	same(t, "it holds", string(data), "one\ntail")
	same(t, "it can be closed once", fmt.Sprint(err, r.Close(), r.Close() != nil), "<nil> <nil> true")
	_, err = OpenSnapshot(f.name + ".none")
	same(t, "there is no file", errors.Is(err, os.ErrNotExist), true)
}

// A file is opened once at a time, by anybody. What is in use, or is no file, or cannot be one, is an error that names it,
// and nothing stays open after that.
func TestOpen(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it closes forgotten files
	handles := func() int {
		open, _ := os.ReadDir("/proc/self/fd") // elsewhere than on Linux there is none
		return len(open)
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "new")
	Open(os.DevNull) // the first one makes the runtime open files of its own
	before := handles()
	for range 2 {
		f, err := Open(name)
		same(t, name, err, nil)
		for bad, why := range map[string]string{
			name: "", dir: "", filepath.Join(dir, "none", "lines"): "", os.DevNull: " is not a regular file",
		} {
			_, err := Open(bad)
			if err == nil || !strings.Contains(err.Error(), bad+why) || errors.Is(err, ErrInUse) != (bad == name) {
				t.Errorf("%s: %v", bad, err)
			}
		}
		same(t, "closed", f.Close(), nil)
		same(t, "open files", handles(), before)
	}
	d, f := openTest(t, "")
	d.broken = "stat"
	_, err := open(f.name, d)
	same(t, "one that cannot be looked at, and is closed then", fmt.Sprint(err, f.Close() != nil), errDisk.Error()+" true")
}

// Open reads the tail and a block at most, wherever the last newline is and however long the file.
func TestOpenReadsTheEnd(t *testing.T) {
	const block = 64 << 10
	for _, whole := range []int{0, 1, 5, block - 1, block, block + 1, 9 * block} {
		for _, tail := range []int{0, 1, block - 1, block, block + 1, 3 * block} {
			d, f := openTest(t, strings.Repeat("\n", whole)+strings.Repeat("x", tail))
			if f.whole != int64(whole) || f.PartialSize() != int64(tail) || d.reads > int64(tail+block) {
				t.Errorf("of %d + %d bytes, %d are whole lines, and %d were read", whole, tail, f.whole, d.reads)
			}
		}
	}
	_, err := wholeLines(strings.NewReader("one"), 4)
	same(t, "a file that was cut meanwhile", errors.Is(err, io.EOF), true)
}

// The file of the empty name takes lines and keeps none.
func TestNowhere(t *testing.T) {
	f, err := Open("")
	same(t, "open, add, keep, cut", errors.Join(err, do(f, "AKC")), nil)
	same(t, "read", fmt.Sprint(read(f.Scanner(5)), f.PartialSize()), "|0")
	same(t, "add two lines at once, close", fmt.Sprint(f.Append([]byte("a\nb")), f.Close()), "a line cannot hold a newline <nil>")
}

// A line or a tail may be as long as was said, and not a byte longer; the rest is not even read. An error names the line.
func TestLongLines(t *testing.T) {
	for _, most := range []int{0, 5, MaxLine, 3 * MaxLine} {
		x := strings.Repeat("x", most)
		same(t, "two of them", read(NewScanner(strings.NewReader(x+"\n"+x), most)), x+"\n|"+x)
		for _, over := range []string{"x", "x\nb", strings.Repeat("x", 9*MaxLine)} {
			in := strings.NewReader("\n" + x + over)
			same(t, "one more byte", read(NewScanner(in, most)), fmt.Sprintf("\n|line 2: it is longer than %d bytes", most))
			same(t, "most is not read", in.Len() >= len(over)-5*MaxLine, true)
		}
	}
	l := NewScanner(io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(errDisk)), 5)
	same(t, "an error of reading", read(l), "a\n|line 2: the disk is broken")
	same(t, "it is wrapped", errors.Is(l.Err(), errDisk), true)
	l = NewScanner(strings.NewReader("a\ntail"), 9)
	l.Scan()
	buffer := l.Bytes()[:6:6]
	l.Scan()
	clear(buffer)
	same(t, "the tail is a copy", string(l.Partial()), "tail")
}

// FuzzLines: whatever the file holds and however it is read, its lines and tail are read up to the first that is too long.
func FuzzLines(f *testing.F) {
	f.Add("a\n\nb", 5)
	f.Add("123\n1234\n", 3)
	f.Fuzz(func(t *testing.T, data string, most int) {
		most = max(0, most%100)
		want, tail, number := "", "", 1
		for line := range strings.Lines(data) {
			if text, whole := strings.CutSuffix(line, "\n"); len(text) > most {
				tail = fmt.Sprintf("line %d: it is longer than %d bytes", number, most)
				break
			} else if !whole {
				tail = text
				break
			}
			want += line
			number++
		}
		same(t, "read", read(NewScanner(iotest.HalfReader(strings.NewReader(data)), most)), want+"|"+tail)
	})
}

// A value has one spelling in a file.
func TestDecode(t *testing.T) {
	type line struct {
		Index, BPM int
		Notes      []string
	}
	const good = `{"Index":-1,"BPM":2147483647,"Notes":["a\u003cb"]}`
	var v line
	same(t, good, fmt.Sprint(Decode([]byte(good), &v), v), "<nil> {-1 2147483647 [a<b]}")
	const plain = `it should be {"Index":1,"BPM":2,"Notes":null}`
	over := strconv.FormatUint(math.MaxInt+1, 10) // which a build for 64 bits writes, and one for 32 bits cannot read
	noInt := fmt.Sprintf(" is no whole number of at most %d bits, which is what this build of the program takes", strconv.IntSize)
	for bad, why := range map[string]string{
		`{"Index": 1,"BPM":2,"Notes":null}`:            plain,
		`{"Index":1,"BPM":2,"Notes":null} `:            plain,
		`{"index":1,"BPM":2,"Notes":null}`:             plain,
		`{"BPM":2,"Index":1,"Notes":null}`:             plain,
		`{"Index":1,"BPM":2}`:                          plain,
		`{"Index":1,"BPM":2,"BPM":2,"Notes":null}`:     plain,
		`{"Index":1,"BPM":2,"Notes":null,"More":3}`:    plain,
		`{"Index":1,"BPM":-0,"Notes":["\u0061"]}`:      `it should be {"Index":1,"BPM":0,"Notes":["a"]}`,
		"{\"Index\":1,\"BPM\":0,\"Notes\":[\"\xff\"]}": `it should be {"Index":1,"BPM":0,"Notes":["�"]}`,
		``:              "unexpected end of JSON input",
		`{}{}`:          "invalid character '{' after top-level value",
		`{"Notes":[1]}`: "json: cannot unmarshal number into Go struct field line.Notes of type string",
		`{"Index":1,"BPM":` + over + `,"Notes":null}`: "BPM: the number " + over + noInt,
		`{"Index":1,"BPM":7.5,"Notes":null}`:          "BPM: the number 7.5" + noInt,
	} {
		same(t, bad, Decode([]byte(bad), new(line)), "bad JSON: "+why)
	}
}
