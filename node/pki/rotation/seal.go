package rotation

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/mootkube/moot/node/pki"
)

// seal encrypts the stages for those who hold the cluster's keys.
func (r *Runner) seal(stages pki.Stages) ([]byte, error) {
	data, err := json.Marshal(stages)
	if err != nil {
		return nil, fmt.Errorf("encode stages: %w", err)
	}
	key, err := pki.SealingKey(r.cfg.Dir)
	if err != nil {
		return nil, err
	}
	box, err := newBox(key)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, box.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("draw nonce: %w", err)
	}
	return box.Seal(nonce, nonce, data, []byte(recordKey)), nil
}

func (r *Runner) unseal(sealed []byte) (pki.Stages, error) {
	key, err := pki.SealingKey(r.cfg.Dir)
	if err != nil {
		return pki.Stages{}, err
	}
	box, err := newBox(key)
	if err != nil {
		return pki.Stages{}, err
	}
	if len(sealed) < box.NonceSize() {
		return pki.Stages{}, errors.New("the record holds no keys")
	}
	data, err := box.Open(nil, sealed[:box.NonceSize()], sealed[box.NonceSize():], []byte(recordKey))
	if err != nil {
		return pki.Stages{}, errors.New("the record was encrypted with other keys than this member's")
	}
	var stages pki.Stages
	if err := json.Unmarshal(data, &stages); err != nil {
		return pki.Stages{}, fmt.Errorf("decode stages: %w", err)
	}
	return stages, nil
}

func newBox(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	box, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return box, nil
}
