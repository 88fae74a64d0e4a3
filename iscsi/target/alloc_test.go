package target

import (
	"encoding/binary"
	"io"
	"testing"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// thrifty is an initiator that allocates nothing, so that what is counted is the
// target's.
type thrifty struct {
	*raw
	in  []byte
	out []byte
}

// run performs one command with immediate data or R2Ts and passes over its answer.
func (r *thrifty) run(flags byte, cdb []byte, n int, immediate int) {
	h := (*pdu.Header)(r.out)
	h.Set(pdu.OpSCSICommand, flags)
	r.itt++
	h.SetITT(r.itt)
	binary.BigEndian.PutUint32(h[20:], uint32(n))
	binary.BigEndian.PutUint32(h[24:], r.cmdSN)
	r.cmdSN++
	copy(h[32:], cdb)
	h.SetDataLen(immediate)
	r.write(immediate)
	for {
		a := (*pdu.Header)(r.in)
		r.read(r.in[:pdu.HeaderLen+r.digest()])
		if n := a.DataLen(); n > 0 {
			r.read(r.in[pdu.HeaderLen+4:][:(n+3)&^3+r.digest()])
		}
		switch {
		case a.Opcode() == pdu.OpR2T:
			off, left, ttt := a.Offset(), int(a.Residual()), a.TTT() // the desired length stands there
			for sn := uint32(0); left > 0; sn++ {
				m := min(left, 64<<10)
				h.Set(pdu.OpDataOut, 0)
				if m == left {
					h.SetFlags(pdu.FlagFinal)
				}
				h.SetITT(r.itt)
				h.SetTTT(ttt)
				h.SetDataSN(sn)
				h.SetOffset(off)
				h.SetDataLen(m)
				r.write(m)
				off, left = off+uint32(m), left-m
			}
		case a.Opcode() == pdu.OpSCSIResponse, a.Opcode() == pdu.OpDataIn && a.Flags()&pdu.FlagStatus != 0:
			if a[3] != 0 {
				r.t.Fatalf("status %d", a[3])
			}
			return
		}
	}
}

// digest is the length of a digest.
func (r *thrifty) digest() int {
	if r.rd.HeaderDigest {
		return 4
	}
	return 0
}

// write sends the header in out, and n bytes of whatever follows it.
func (r *thrifty) write(n int) {
	at := pdu.HeaderLen
	if d := r.digest(); d > 0 {
		pdu.PutDigest(r.out[at:], pdu.Digest(0, r.out[:at]))
		at += d
		if n > 0 {
			pdu.PutDigest(r.out[at+n:], pdu.Digest(0, r.out[at:at+n]))
			n += d
		}
	}
	if _, err := r.nc.Write(r.out[:at+n]); err != nil {
		r.t.Fatal(err)
	}
}

func (r *thrifty) read(p []byte) {
	if _, err := io.ReadFull(r.nc, p); err != nil {
		r.t.Fatal(err)
	}
}

// In steady state a command allocates nothing.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	if race {
		t.Skip("the race detector allocates, and empties pools at random")
	}
	for name, digest := range map[string]string{"plain": "None", "digests": "CRC32C"} {
		l := newLab(t, Options{})
		l.add(newDisk(16 << 20))
		raw := l.login(alice, kv("MaxRecvDataSegmentLength", "262144", "MaxBurstLength", "262144", "HeaderDigest", digest, "DataDigest", digest)...)
		raw.ready(0)
		r := &thrifty{raw: raw, in: make([]byte, 1<<20), out: make([]byte, 1<<20)}
		for what, f := range map[string]func(){
			"read of 4 KiB":    func() { r.run(ioRead, cdb4k[0], 4096, 0) },
			"write of 4 KiB":   func() { r.run(ioWrite, cdb4k[1], 4096, 4096) },
			"read of 1 MiB":    func() { r.run(ioRead, cdb1m[0], 1<<20, 0) },
			"write of 1 MiB":   func() { r.run(ioWrite, cdb1m[1], 1<<20, 0) },
			"TEST UNIT READY":  func() { r.run(pdu.FlagFinal, cdbNone, 0, 0) },
			"SYNCHRONIZE":      func() { r.run(pdu.FlagFinal, cdbSync, 0, 0) },
			"WRITE AND VERIFY": func() { r.run(ioWrite, cdbVerify, 4096, 4096) },
		} {
			for range 20 {
				f()
			}
			// The average is rounded down: what a collection takes from the
			// pools meanwhile doesn't count.
			if n := testing.AllocsPerRun(200, f); n > 0 {
				t.Errorf("%s, %s: %v allocations", name, what, n)
			}
		}
	}
}

var (
	cdb4k     = [2][]byte{cdb10(0x28, 0, 8), cdb10(0x2a, 0, 8)}
	cdb1m     = [2][]byte{cdb10(0x28, 0, 2048), cdb10(0x2a, 0, 2048)}
	cdbSync   = cdb10(0x35, 0, 0)
	cdbVerify = cdb10(0x2e, 0, 8)
	cdbNone   = make([]byte, 16)
)
