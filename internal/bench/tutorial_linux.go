package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"strconv"
	"sync"
	"time"
)

// tutorial is a server built the tutorial's way: further goroutines for each
// connection, announcements over one unbuffered channel that all handlers read,
// the list of validators printed whenever one joins, the chain encoded for
// each terminal. It differs in one thing: all that is shared is guarded by the mutex.
// The original's map of validators is not, and the process dies of that
// ("concurrent map writes") when two terminals join at the same moment.
type tutorial struct {
	round, broadcast time.Duration

	candidateBlocks chan Block
	announcements   chan string

	mu         sync.Mutex // guards what follows
	chain      []Block
	tempBlocks []Block
	validators map[string]int
}

// runTutorial serves until it is killed. The arguments are the length of a round,
// the time between two broadcasts and the length of its chain at the start.
func runTutorial(args []string) error {
	s := &tutorial{candidateBlocks: make(chan Block), announcements: make(chan string), validators: map[string]int{}}
	var err error
	if s.round, err = time.ParseDuration(args[0]); err != nil {
		return err
	}
	if s.broadcast, err = time.ParseDuration(args[1]); err != nil {
		return err
	}
	length, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	s.chain = newChain(length)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("listening on %s\n", ln.Addr())
	go func() {
		for candidate := range s.candidateBlocks {
			s.mu.Lock()
			s.tempBlocks = append(s.tempBlocks, candidate)
			s.mu.Unlock()
		}
	}()
	go func() {
		for {
			s.pickWinner()
		}
	}()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go s.handleConn(conn)
	}
}

// pickWinner waits for the end of the round and draws from a pool with one entry a token.
func (s *tutorial) pickWinner() {
	time.Sleep(s.round)
	s.mu.Lock()
	temp := s.tempBlocks
	s.tempBlocks = nil
	stakes := make(map[string]int, len(temp))
	for _, block := range temp {
		stakes[block.Validator] = s.validators[block.Validator]
	}
	validators := len(s.validators)
	s.mu.Unlock()

	var lotteryPool []string
outer:
	for _, block := range temp {
		for _, node := range lotteryPool {
			if block.Validator == node {
				continue outer
			}
		}
		for range stakes[block.Validator] {
			lotteryPool = append(lotteryPool, block.Validator)
		}
	}
	if len(lotteryPool) == 0 {
		return
	}
	lotteryWinner := lotteryPool[rand.Intn(len(lotteryPool))]
	for _, block := range temp {
		if block.Validator == lotteryWinner {
			s.mu.Lock()
			s.chain = append(s.chain, block)
			s.mu.Unlock()
			// Whichever handlers are free take them.
			for range validators {
				s.announcements <- "\nwinning validator: " + lotteryWinner + "\n"
			}
			return
		}
	}
}

// handleConn talks with one terminal.
func (s *tutorial) handleConn(conn net.Conn) {
	defer conn.Close()
	go func() {
		for msg := range s.announcements {
			io.WriteString(conn, msg)
		}
	}()

	io.WriteString(conn, greeting)
	var address string
	scanBalance := bufio.NewScanner(conn)
	if scanBalance.Scan() {
		balance, err := strconv.Atoi(scanBalance.Text())
		if err != nil {
			log.Printf("%v not a number: %v", scanBalance.Text(), err)
			return
		}
		address = sha256Hex(time.Now().String())
		s.mu.Lock()
		s.validators[address] = balance
		fmt.Println(s.validators)
		s.mu.Unlock()
	}

	io.WriteString(conn, bpmPrompt)
	go func() {
		scanBPM := bufio.NewScanner(conn)
		// The original scans on for ever when the terminal is gone, a processor
		// each; here the goroutine ends.
		for scanBPM.Scan() {
			bpm, err := strconv.Atoi(scanBPM.Text())
			if err != nil {
				log.Printf("%v not a number: %v", scanBPM.Text(), err)
				s.mu.Lock()
				delete(s.validators, address)
				s.mu.Unlock()
				conn.Close()
			}
			s.mu.Lock()
			head := s.chain[len(s.chain)-1]
			s.mu.Unlock()
			s.candidateBlocks <- newBlock(head, bpm, address)
			io.WriteString(conn, bpmPrompt)
		}
	}()

	for {
		time.Sleep(s.broadcast)
		s.mu.Lock()
		output, err := json.Marshal(s.chain)
		s.mu.Unlock()
		if err != nil {
			log.Fatal(err)
		}
		io.WriteString(conn, string(output)+"\n")
	}
}
