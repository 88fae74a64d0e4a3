package dataplane

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
)

// configured is the record of an initiator as configuration or API name it.
func configured(i remote.Initiator) (initiatorRecord, error) {
	n, err := iscsi.ParseName(i.IQN)
	if err != nil {
		return initiatorRecord{}, err
	}
	return initiatorRecord{IQN: n, User: i.User, Secret: i.SecretFile, MutualUser: i.MutualUser, Mutual: i.MutualSecretFile}, nil
}

// credentials reads an initiator's secrets; nil if it has none.
func (r initiatorRecord) credentials() (*mask.Credentials, error) {
	if r.Secret == "" {
		return nil, nil
	}
	c := &mask.Credentials{User: r.User, MutualUser: r.MutualUser}
	if c.User == "" {
		c.User = string(r.IQN)
	}
	var err error
	if c.Secret, err = readSecret(r.Secret); err != nil {
		return nil, err
	}
	if r.Mutual != "" {
		if c.MutualSecret, err = readSecret(r.Mutual); err != nil {
			return nil, err
		}
	}
	return c, c.Check()
}

// readSecret reads a secret's file without the line's end. One that others may
// read is refused.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("CHAP secret: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("CHAP secret: %w", err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("CHAP secret: %s may be read by others; chmod 600 it", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, mask.MaxSecret+3))
	if err != nil {
		return nil, fmt.Errorf("CHAP secret: %w", err)
	}
	return bytes.TrimRight(b, "\r\n"), nil
}

func (p *plane) setCredentials(r initiatorRecord) error {
	c, err := r.credentials()
	if err != nil {
		return err
	}
	return p.target.SetCredentials(r.IQN, c)
}

// setInitiator records an initiator. Secrets that came by value are kept in
// files of our own.
func (p *plane) setInitiator(i remote.Initiator) error {
	r, err := configured(i)
	if err != nil {
		return driver.Errorf(driver.InvalidRequest, "%w", err)
	}
	for _, f := range []string{i.SecretFile, i.MutualSecretFile} {
		if f != "" && !filepath.IsAbs(f) {
			return driver.Errorf(driver.InvalidRequest, "initiator %s: secret file %.200q: want an absolute path", i.IQN, f)
		}
	}
	if i.Secret != "" && i.SecretFile != "" || i.MutualSecret != "" && i.MutualSecretFile != "" {
		return driver.Errorf(driver.InvalidRequest, "initiator %s: a secret and a file of it: want one of them", i.IQN)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i.Secret != "" {
		r.Secret = p.secretFile(r.IQN, "secret")
	}
	if i.MutualSecret != "" {
		r.Mutual = p.secretFile(r.IQN, "mutual")
	}
	for path, s := range map[string]string{r.Secret: i.Secret, r.Mutual: i.MutualSecret} {
		if s == "" {
			continue
		}
		if len(s) < mask.MinSecret || len(s) > mask.MaxSecret {
			return driver.Errorf(driver.InvalidRequest, "initiator %s: CHAP secret of %d bytes, want %d to %d", i.IQN, len(s), mask.MinSecret, mask.MaxSecret)
		}
		if err := replaceFile(path, []byte(s)); err != nil {
			return fmt.Errorf("keeping the CHAP secret of %s: %w", i.IQN, err)
		}
	}
	if _, err := r.credentials(); err != nil {
		return driver.Errorf(driver.InvalidRequest, "initiator %s: %w", i.IQN, err)
	}
	next := p.rec.clone()
	next.Initiators = slices.DeleteFunc(next.Initiators, func(x initiatorRecord) bool { return x.IQN == r.IQN })
	next.Initiators = append(next.Initiators, r)
	if err := next.save(p.recordPath()); err != nil {
		return err
	}
	p.rec = next
	return p.setCredentials(r)
}

func (p *plane) secretFile(n iscsi.Name, what string) string {
	sum := sha256.Sum256([]byte(n)) // a name may be longer than a file's
	return filepath.Join(p.secrets(), hex.EncodeToString(sum[:16])+"."+what)
}

func (p *plane) removeInitiator(s string) error {
	n, err := iscsi.ParseName(s)
	if err != nil {
		return driver.Errorf(driver.InvalidRequest, "%w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.rec.grants(n); len(g) > 0 {
		// Without its secret it would be let in as anybody who has none.
		return driver.Errorf(driver.Busy, "initiator %s still sees %d LUNs; unexpose them first", n, len(g))
	}
	next := p.rec.clone()
	next.Initiators = slices.DeleteFunc(next.Initiators, func(x initiatorRecord) bool { return x.IQN == n })
	if err := next.save(p.recordPath()); err != nil {
		return err
	}
	p.rec = next
	for _, what := range []string{"secret", "mutual"} {
		if err := os.Remove(p.secretFile(n, what)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("initiator %s: %w", n, err)
		}
	}
	if err := p.target.SetCredentials(n, nil); err != nil {
		return err
	}
	return p.target.ForgetInitiator(n)
}

func (p *plane) initiators() []remote.Initiator {
	sessions := map[iscsi.Name]int{}
	for _, s := range p.target.Sessions() {
		sessions[s.Initiator]++
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []remote.Initiator{}
	seen := map[iscsi.Name]bool{}
	add := func(n iscsi.Name, user, mutual string) {
		if seen[n] {
			return
		}
		seen[n] = true
		i := remote.Initiator{IQN: string(n), User: user, MutualUser: mutual, Sessions: sessions[n]}
		for _, g := range p.rec.grants(n) {
			i.LUNs = append(i.LUNs, uint64(g.LUN))
		}
		out = append(out, i)
	}
	for _, i := range p.c.Initiators {
		if r, err := configured(i); err == nil {
			add(r.IQN, r.User, r.MutualUser)
		}
	}
	for _, r := range p.rec.Initiators {
		add(r.IQN, r.User, r.MutualUser)
	}
	for _, l := range p.rec.LUNs {
		for _, n := range l.Initiators {
			add(n, "", "")
		}
	}
	return out
}
