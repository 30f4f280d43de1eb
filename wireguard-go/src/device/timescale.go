// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

//go:build !wg_short_timers

package device

const timeScale = 1
