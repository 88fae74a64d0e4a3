package target

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/chap"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

func TestNegotiation(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	for i, c := range []struct{ key, offer, want string }{
		{"HeaderDigest", "CRC32C,None", "CRC32C"},
		{"HeaderDigest", "None,CRC32C", "None"},
		{"HeaderDigest", "SHA999", "Reject"},
		{"MaxConnections", "8", "1"},
		{"InitialR2T", "No", "No"},
		{"InitialR2T", "Maybe", "Reject"},
		{"ImmediateData", "Yes", "Yes"},
		{"ImmediateData", "No", "No"},
		{"MaxBurstLength", "262144", "262144"},
		{"MaxBurstLength", "16777215", fmt.Sprint(ourMaxBurst)},
		{"MaxBurstLength", "511", "Reject"},
		{"MaxBurstLength", "16777216", "Reject"},
		{"FirstBurstLength", "0x200", "512"},
		{"MaxOutstandingR2T", "4", "4"},
		{"MaxOutstandingR2T", "0", "Reject"},
		{"DefaultTime2Wait", "5", "5"},
		{"DefaultTime2Retain", "20", "0"},
		{"ErrorRecoveryLevel", "2", "0"},
		{"DataPDUInOrder", "No", "Yes"},
		{"DataSequenceInOrder", "Yes", "Yes"},
		{"IFMarker", "Yes", "No"},
		{"OFMarkInt", "2048~8192", "Reject"},
		{"TaskReporting", "FastAbort,RFC3720", "RFC3720"},
		{"iSCSIProtocolLevel", "2", "1"},
		{"X-org.example.key", "1", "NotUnderstood"},
		{"NoSuchKey", "1", "NotUnderstood"},
	} {
		r := l.dial()
		r.isid = byte(i)
		st, out, h := r.loginPDU(1, 3, true, names(alice, pdu.Key{Name: c.key, Value: c.offer})...)
		if st != 0 || out[c.key] != c.want {
			t.Errorf("%s=%s: status %04x, answer %q, want %q", c.key, c.offer, st, out[c.key], c.want)
		}
		if h.TSIH() == 0 || out["MaxRecvDataSegmentLength"] == "" || out["TargetPortalGroupTag"] != "1" {
			t.Errorf("%s: TSIH %d, keys %v", c.key, h.TSIH(), out)
		}
		r.nc.Close()
	}
}

func TestLoginRefused(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	l.must(l.s.AddTarget("iqn.2026-01.test:hidden", ""))
	for name, c := range map[string]struct {
		keys []pdu.Key
		csg  byte
		want loginStatus
	}{
		"no initiator":   {[]pdu.Key{{Name: "TargetName", Value: string(testTarget)}}, 1, statusMissing},
		"no target":      {[]pdu.Key{{Name: "InitiatorName", Value: string(alice)}}, 1, statusMissing},
		"unknown target": {[]pdu.Key{{Name: "InitiatorName", Value: string(alice)}, {Name: "TargetName", Value: "iqn.2026-01.test:none"}}, 1, statusAuthFailed},
		"hidden target":  {[]pdu.Key{{Name: "InitiatorName", Value: string(alice)}, {Name: "TargetName", Value: "iqn.2026-01.test:hidden"}}, 1, statusAuthFailed},
		"bad name":       {[]pdu.Key{{Name: "InitiatorName", Value: "alice"}, {Name: "TargetName", Value: string(testTarget)}}, 1, statusInitiatorError},
		"session type":   {names(alice, pdu.Key{Name: "SessionType", Value: "Party"}), 1, statusSessionType},
		"key twice":      {names(alice, pdu.Key{Name: "MaxBurstLength", Value: "512"}, pdu.Key{Name: "MaxBurstLength", Value: "1024"}), 1, statusInitiatorError},
		"auth too late":  {names(alice, pdu.Key{Name: "AuthMethod", Value: "None"}), 1, statusInitiatorError},
		"no method":      {names(alice, pdu.Key{Name: "AuthMethod", Value: "KRB5"}), 0, statusAuthFailed},
		"chap unasked":   {names(alice, pdu.Key{Name: "CHAP_A", Value: "5"}), 0, statusInitiatorError},
	} {
		r := l.dial()
		st, _, _ := r.loginPDU(c.csg, 3, true, c.keys...)
		if st != uint16(c.want) {
			t.Errorf("%s: status %04x, want %04x", name, st, c.want)
		}
		r.gone()
	}
	// Nobody got in.
	eventually(t, "no session", func() bool { return len(l.s.Sessions()) == 0 })
}

// chapLogin goes through CHAP as an initiator; reply may change the answer's keys.
func (r *raw) chapLogin(initiator, target iscsi.Name, alg, user string, secret []byte, more ...pdu.Key) (uint16, map[string]string, chap.Challenge) {
	r.t.Helper()
	st, out, _ := r.loginPDU(0, 1, false, pdu.Key{Name: "InitiatorName", Value: string(initiator)},
		pdu.Key{Name: "TargetName", Value: string(target)}, pdu.Key{Name: "AuthMethod", Value: "CHAP,None"})
	if st != 0 || out["AuthMethod"] != "CHAP" {
		return st, out, chap.Challenge{}
	}
	st, out, _ = r.loginPDU(0, 1, false, pdu.Key{Name: "CHAP_A", Value: alg})
	if st != 0 {
		return st, out, chap.Challenge{}
	}
	a, _ := chap.Choose(out["CHAP_A"])
	c, err := chap.ReadChallenge(a, out["CHAP_I"], out["CHAP_C"])
	r.must(err)
	keys := append([]pdu.Key{{Name: "CHAP_N", Value: user}, {Name: "CHAP_R", Value: chap.Encode(c.Answer(secret))}}, more...)
	st, out, _ = r.loginPDU(0, 1, true, keys...)
	return st, out, c
}

func TestCHAP(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	creds := &mask.Credentials{User: "alice", Secret: []byte("initiator-secret"), MutualUser: "disk", MutualSecret: []byte("target-secret-42")}
	l.must(l.s.SetMask(testTarget, mask.Anyone))
	l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}))
	l.must(l.s.SetCredentials(alice, creds))

	for _, alg := range []string{"5", "6", "7", "7,6,5"} {
		theirs := chap.NewChallenge(chap.MD5)
		r := l.dial()
		st, out, c := r.chapLogin(alice, testTarget, alg, "alice", creds.Secret,
			pdu.Key{Name: "CHAP_I", Value: fmt.Sprint(theirs.Identifier)}, pdu.Key{Name: "CHAP_C", Value: chap.Encode(theirs.Value)})
		if st != 0 {
			t.Fatalf("algorithm %s: status %04x", alg, st)
		}
		theirs.Algorithm = c.Algorithm
		proof, err := chap.Decode(out["CHAP_R"])
		if err != nil || out["CHAP_N"] != "disk" || !theirs.Verify(creds.MutualSecret, proof) {
			t.Errorf("algorithm %s: the target did not prove itself: %v", alg, out)
		}
		if st, _, h := r.loginPDU(1, 3, true); st != 0 || h.TSIH() == 0 {
			t.Errorf("algorithm %s: end of login %04x", alg, st)
		}
		r.ready(0)
		r.nc.Close()
	}
}

// All of these get the same answer, at the same step.
func TestCHAPRefused(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	secret := []byte("initiator-secret")
	l.must(l.s.SetMask(testTarget, mask.Anyone))
	l.must(l.s.SetMask(testTarget, alice, mask.Grant{LUN: 0}))
	l.must(l.s.SetCredentials(alice, &mask.Credentials{User: "alice", Secret: secret}))
	type who struct {
		initiator, target iscsi.Name
		user              string
		secret            []byte
	}
	for name, w := range map[string]who{
		"wrong secret":      {alice, testTarget, "alice", []byte("initiator-secreT")},
		"wrong user":        {alice, testTarget, "bob", secret},
		"unknown initiator": {bob, testTarget, "alice", secret},
	} {
		r := l.dial()
		if st, _, _ := r.chapLogin(w.initiator, w.target, "5", w.user, w.secret); st != uint16(statusAuthFailed) {
			t.Errorf("%s: status %04x", name, st)
		}
		r.gone()
	}
	// An unknown target shows itself in nothing but the same status at the end.
	r := l.dial()
	st, _, _ := r.chapLogin(alice, "iqn.2026-01.test:none", "5", "alice", secret)
	if st == 0 {
		st, _, _ = r.loginPDU(1, 3, true)
	}
	if st != uint16(statusAuthFailed) {
		t.Errorf("unknown target: status %04x", st)
	}
	// The challenge sent back is no proof, and may not be answered.
	r = l.dial()
	r.loginPDU(0, 1, false, names(alice, pdu.Key{Name: "AuthMethod", Value: "CHAP"})...)
	_, out, _ := r.loginPDU(0, 1, false, pdu.Key{Name: "CHAP_A", Value: "5"})
	c, err := chap.ReadChallenge(chap.MD5, out["CHAP_I"], out["CHAP_C"])
	l.must(err)
	st, out, _ = r.loginPDU(0, 1, true, pdu.Key{Name: "CHAP_N", Value: "alice"}, pdu.Key{Name: "CHAP_R", Value: chap.Encode(c.Answer(secret))},
		pdu.Key{Name: "CHAP_I", Value: "1"}, pdu.Key{Name: "CHAP_C", Value: chap.Encode(c.Value)})
	if st != uint16(statusAuthFailed) || out["CHAP_R"] != "" {
		t.Errorf("reflection: status %04x, %v", st, out)
	}
	// None is not enough, nor is skipping the stage.
	r = l.dial()
	if st, _, _ := r.loginPDU(0, 1, true, names(alice, pdu.Key{Name: "AuthMethod", Value: "None"})...); st != uint16(statusAuthFailed) {
		t.Errorf("None: status %04x", st)
	}
	r = l.dial()
	if st, _, _ := r.loginPDU(1, 3, true, names(alice)...); st != uint16(statusAuthFailed) {
		t.Errorf("stage skipped: status %04x", st)
	}
}

// Login text over several PDUs (C bit), and a PDU for each stage.
func TestLoginInPieces(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	r := l.dial()
	text := pdu.AppendText(nil, names(alice, pdu.Key{Name: "InitiatorAlias", Value: strings.Repeat("a", 200)})...)
	var h pdu.Header
	for len(text) > 20 {
		h.Set(pdu.OpLogin|0x40, pdu.FlagContinue|1<<2)
		h.SetISID([6]byte{0x80, 1, 2, 3, 4, 0})
		h.SetITT(99)
		r.must(r.send(&h, text[:20]))
		text = text[20:]
		a, data, err := r.recv()
		r.must(err)
		if a.Final() || len(data) > 0 || a[36] != 0 {
			t.Fatalf("answer to a piece: %s %x", &a, data)
		}
	}
	h.Set(pdu.OpLogin|0x40, pdu.FlagFinal|1<<2|3)
	h.SetISID([6]byte{0x80, 1, 2, 3, 4, 0})
	h.SetITT(99)
	r.must(r.send(&h, text))
	if a, _, err := r.recv(); err != nil || a[36] != 0 || a.TSIH() == 0 {
		t.Fatalf("%v %s status %d", err, &a, a[36])
	}
}

func TestDiscovery(t *testing.T) {
	l := newLab(t, Options{})
	l.add(newDisk(1 << 20))
	l.must(l.s.SetMask(testTarget, mask.Anyone))
	for i := range 300 {
		n := iscsi.Name(fmt.Sprintf("iqn.2026-01.test:many-%03d", i))
		l.must(l.s.AddTarget(n, ""))
		l.must(l.s.SetMask(n, alice, mask.Grant{LUN: 0}))
	}
	discover := func(who iscsi.Name) string {
		r := l.dial()
		if st, _, _ := r.loginPDU(1, 3, true, pdu.Key{Name: "InitiatorName", Value: string(who)},
			pdu.Key{Name: "SessionType", Value: "Discovery"}, pdu.Key{Name: "MaxRecvDataSegmentLength", Value: "512"}); st != 0 {
			t.Fatalf("status %04x", st)
		}
		var all []byte
		ttt := uint32(pdu.NoTag)
		text := pdu.AppendText(nil, pdu.Key{Name: "SendTargets", Value: "All"})
		for {
			var h pdu.Header
			h.Set(pdu.OpText|0x40, pdu.FlagFinal)
			h.SetITT(5)
			h.SetTTT(ttt)
			h[27] = 1
			r.must(r.send(&h, text))
			a, data, err := r.recv()
			r.must(err)
			if a.Opcode() != pdu.OpTextResp || len(data) > 512 {
				t.Fatalf("%s", &a)
			}
			all = append(all, data...)
			if a.Final() {
				return string(all)
			}
			ttt, text = a.TTT(), nil
		}
	}
	if got := discover(alice); strings.Count(got, "TargetName=") != 300 || strings.Contains(got, string(testTarget)) ||
		!strings.Contains(got, "TargetAddress="+l.portal.String()+",1") {
		t.Errorf("alice sees %d bytes", len(got))
	}
	if got := discover(bob); got != "" {
		t.Errorf("bob sees %q", got)
	}
}
