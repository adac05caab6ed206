// SPDX-FileCopyrightText: The ipcbuf authors
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "ipcbuf/layout.hpp"
